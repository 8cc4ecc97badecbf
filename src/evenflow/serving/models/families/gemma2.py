"""Gemma 2: Gemma with norms around attention and MLP, capped scores and logits, and a window in every other layer."""

from evenflow.serving.models.family import ModelFamily, Traits
from evenflow.serving.models.fields import Fields


def _traits(fields: Fields) -> Traits:
    return Traits(
        embedding_multiplier=fields.integer("hidden_size") ** 0.5,
        is_embedding_multiplier_rounded=True,
        attention_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_softcap=fields.optional_number("attn_logit_softcapping", 50.0),
        logits_softcap=fields.optional_number("final_logit_softcapping", 30.0),
    )


FAMILY = ModelFamily(
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    published="Gemma 2",
    reads_attention_bias=True,
    default_num_kv_heads=4,
    default_head_dim=256,
    default_is_tied=True,
    activation_field="hidden_activation",
    default_activation="gelu_pytorch_tanh",
    full_every=2,
    honours=frozenset({"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"}),
    traits=_traits,
    norm="rms 1 + w",
    norms=(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    layer="evenflow.serving.models.layer_orders:NormsAroundLayer",
)
