"""ERNIE 4.5, dense: Llama that rotates neighbouring elements together, with one field for all biases."""

from evenflow.serving.models.family import ModelFamily

FAMILY = ModelFamily(
    architecture="Ernie4_5ForCausalLM",
    model_type="ernie4_5",
    published="ERNIE 4.5 (dense)",
    reads_attention_bias=True,
    attention_bias_field="use_bias",
    o_bias_field="use_bias",
    reads_mlp_bias=True,
    mlp_bias_field="use_bias",
    default_num_kv_heads=2,
    default_head_dim=128,
    default_norm_eps=1e-5,
    default_is_tied=True,
    rotates_neighbours=True,
)
