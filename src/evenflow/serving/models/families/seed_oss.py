"""Seed-OSS: Llama with biases at q, k and v."""

from evenflow.serving.models.family import ModelFamily

FAMILY = ModelFamily(
    architecture="SeedOssForCausalLM",
    model_type="seed_oss",
    published="Seed-OSS",
    reads_attention_bias=True,
    default_attention_bias=True,
    o_bias_field="attention_out_bias",
    reads_mlp_bias=True,
    default_num_kv_heads=8,
    default_head_dim=128,
)
