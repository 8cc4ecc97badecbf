"""Qwen3: a norm on every query and key head."""

from evenflow.serving.models.family import ModelFamily

FAMILY = ModelFamily(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    published="Qwen 3 (dense)",
    reads_attention_bias=True,
    qk_norm="heads",
    default_head_dim=128,
    sliding_window="if used",
)
