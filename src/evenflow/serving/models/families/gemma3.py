"""Gemma 3 (text): Gemma 2 with q/k norms instead of capped scores; layers with a window rotate by a base of their own."""

from evenflow.serving.models.family import ModelFamily, Traits
from evenflow.serving.models.fields import Fields


def _traits(fields: Fields) -> Traits:
    return Traits(
        embedding_multiplier=fields.integer("hidden_size") ** 0.5,
        is_embedding_multiplier_rounded=True,
        attention_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        logits_softcap=fields.optional_number("final_logit_softcapping"),
    )


FAMILY = ModelFamily(
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    published="Gemma 3 270M and 1B, text models of the larger ones",
    reads_attention_bias=True,
    default_num_kv_heads=4,
    default_head_dim=256,
    default_theta=1_000_000.0,
    default_is_tied=True,
    activation_field="hidden_activation",
    default_activation="gelu_pytorch_tanh",
    full_every=6,
    full_every_field="sliding_window_pattern",
    has_rope_per_layer_type=True,
    window_theta_field="rope_local_base_freq",
    default_window_theta=10_000.0,
    honours=frozenset({"query_pre_attn_scalar", "final_logit_softcapping", "rope_local_base_freq"}),
    traits=_traits,
    norm="rms 1 + w",
    qk_norm="heads",
    norms=(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    layer="evenflow.serving.models.layer_orders:NormsAroundLayer",
)
