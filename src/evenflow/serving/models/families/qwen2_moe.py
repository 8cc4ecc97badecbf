"""Qwen2-MoE: Qwen2 with a mixture of experts and a shared expert, which is weighed by a sigmoid gate."""

from evenflow.serving.models.family import ModelFamily
from evenflow.serving.models.fields import Fields
from evenflow.serving.models.mixture import Mixture, read_mixture


def _mixture(fields: Fields) -> Mixture:
    if not fields.flag("qkv_bias", True):
        fields.refuse("qkv_bias is False; supported: true")
    if fields.flag("use_sliding_window") and fields.raw.get("layer_types") is None:
        fields.refuse("use_sliding_window is True without layer_types; supported: false, or layer_types that name the layers")
    return read_mixture(fields, num_experts=60, num_chosen=4, width=1408, default_shared_width=5632, has_dense_layers=True)


FAMILY = ModelFamily(
    architecture="Qwen2MoeForCausalLM",
    model_type="qwen2_moe",
    published="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    has_qkv_bias=True,
    sliding_window="if used",
    honours=frozenset({"num_experts", "num_local_experts"}),
    mixture=_mixture,
    mlp="evenflow.serving.models.experts:Experts",
)
