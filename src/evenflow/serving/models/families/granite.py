"""Granite: Llama with multipliers at the embedding, the residual stream, the scores and the logits."""

from evenflow.serving.models.family import ModelFamily, Traits
from evenflow.serving.models.fields import Fields


def _traits(fields: Fields) -> Traits:
    return Traits(
        embedding_multiplier=fields.number("embedding_multiplier", 1.0),
        residual_multiplier=fields.number("residual_multiplier", 1.0),
        attention_scale=fields.number("attention_multiplier", 1.0),
        logits_multiplier=1 / fields.number("logits_scaling", 1.0),
    )


FAMILY = ModelFamily(
    architecture="GraniteForCausalLM",
    model_type="granite",
    published="Granite 3.0 to 3.3",
    reads_attention_bias=True,
    reads_mlp_bias=True,
    honours=frozenset({"embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"}),
    traits=_traits,
    layer="evenflow.serving.models.layer_orders:WeighedLayer",
)
