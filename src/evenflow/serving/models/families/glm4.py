"""GLM-4 (0414): norms around attention and MLP; the first half of every head is rotated, neighbours together."""

from evenflow.serving.models.family import ModelFamily

FAMILY = ModelFamily(
    architecture="Glm4ForCausalLM",
    model_type="glm4",
    published="GLM-4-0414",
    reads_attention_bias=True,
    default_attention_bias=True,
    o_bias_field=None,
    default_num_kv_heads=2,
    default_head_dim=128,
    default_norm_eps=1.5625e-07,
    default_partial=0.5,
    rotates_neighbours=True,
    norms=("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    fused={"gate_up_proj": ("gate_proj", "up_proj")},
    layer="evenflow.serving.models.layer_orders:NormsAroundLayer",
)
