"""OLMo 3: OLMo 2 with a window in three of four layers, whose rope is not stretched."""

from evenflow.serving.models.family import ModelFamily

FAMILY = ModelFamily(
    architecture="Olmo3ForCausalLM",
    model_type="olmo3",
    published="OLMo 3",
    reads_attention_bias=True,
    default_theta=500_000.0,
    default_norm_eps=1e-5,
    full_every=4,
    has_rope_per_layer_type=True,
    qk_norm="whole",
    norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    layer="evenflow.serving.models.layer_orders:NormsAfterLayer",
)
