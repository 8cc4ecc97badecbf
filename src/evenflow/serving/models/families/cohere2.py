"""Cohere's Command R7B and A: Command with a window in three of four layers; the fourth sees everything and does not rotate."""

from dataclasses import replace

from evenflow.serving.models.family import LayerKind, ModelFamily, Traits
from evenflow.serving.models.fields import Fields


def _traits(fields: Fields) -> Traits:
    return Traits(logits_multiplier=fields.number("logit_scale", 0.0625))


def _layers(fields: Fields, layers: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    return tuple(kind if kind.window is not None else replace(kind, rope=None) for kind in layers)


FAMILY = ModelFamily(
    architecture="Cohere2ForCausalLM",
    model_type="cohere2",
    published="Command R7B, Command A",
    reads_attention_bias=True,
    norm_eps_field="layer_norm_eps",
    default_norm_eps=1e-5,
    default_is_tied=True,
    full_every=4,
    full_every_field="sliding_window_pattern",
    honours=frozenset({"logit_scale"}),
    traits=_traits,
    layers=_layers,
    norm="layer",
    rotates_neighbours=True,
    norms=("input_layernorm",),
    layer="evenflow.serving.models.layer_orders:ParallelLayer",
)
