"""OLMo 2: norms after attention and MLP instead of before, and one norm over all queries and one over all keys."""

from evenflow.serving.models.family import ModelFamily

FAMILY = ModelFamily(
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    published="OLMo 2",
    reads_attention_bias=True,
    default_norm_eps=1e-5,
    qk_norm="whole",
    norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    layer="evenflow.serving.models.layer_orders:NormsAfterLayer",
)
