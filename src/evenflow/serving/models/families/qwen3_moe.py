"""Qwen3-MoE: Qwen3 with a mixture of experts."""

from dataclasses import replace

from evenflow.serving.models.family import LayerKind, ModelFamily
from evenflow.serving.models.fields import Fields
from evenflow.serving.models.mixture import Mixture, read_mixture


def _mixture(fields: Fields) -> Mixture:
    return read_mixture(fields, num_experts=128, num_chosen=8, width=768, has_dense_layers=True)


def _layers(fields: Fields, layers: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """A window that is used is every layer's: max_window_layers means nothing to this family."""
    window = fields.integer("sliding_window", 4096) if fields.flag("use_sliding_window") else None
    return tuple(replace(kind, window=window) for kind in layers)


FAMILY = ModelFamily(
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    published="Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder-30B-A3B",
    reads_attention_bias=True,
    qk_norm="heads",
    default_num_kv_heads=4,
    honours=frozenset({"num_experts", "num_local_experts"}),
    mixture=_mixture,
    layers=_layers,
    mlp="evenflow.serving.models.experts:Experts",
)
