"""GLM-4 of 2024: Llama with gate and up stored as one; the first half of every head is rotated, neighbours together."""

from evenflow.serving.models.family import ModelFamily

FAMILY = ModelFamily(
    architecture="GlmForCausalLM",
    model_type="glm",
    published="GLM-4-9B, GLM-Edge",
    reads_attention_bias=True,
    default_attention_bias=True,
    o_bias_field=None,
    default_num_kv_heads=2,
    default_head_dim=128,
    default_norm_eps=1.5625e-07,
    default_partial=0.5,
    rotates_neighbours=True,
    fused={"gate_up_proj": ("gate_proj", "up_proj")},
)
