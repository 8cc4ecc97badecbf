"""Cohere's Command: layer norms, attention and MLP beside each other, neighbours rotated together, scaled logits."""

from evenflow.serving.models.family import ModelFamily, Traits
from evenflow.serving.models.fields import Fields


def _traits(fields: Fields) -> Traits:
    return Traits(logits_multiplier=fields.number("logit_scale", 0.0625))


FAMILY = ModelFamily(
    architecture="CohereForCausalLM",
    model_type="cohere",
    published="Command R (without q/k norm), Aya 23 and Expanse 8B",
    reads_attention_bias=True,
    norm_eps_field="layer_norm_eps",
    default_norm_eps=1e-5,
    default_is_tied=True,
    honours=frozenset({"logit_scale"}),
    traits=_traits,
    norm="layer",
    rotates_neighbours=True,
    norms=("input_layernorm",),
    layer="evenflow.serving.models.layer_orders:ParallelLayer",
)
