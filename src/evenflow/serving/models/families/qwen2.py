"""Qwen2: biases at q, k and v."""

from evenflow.serving.models.family import ModelFamily

FAMILY = ModelFamily(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    published="Qwen 2, 2.5, DeepSeek-R1-Distill-Qwen",
    has_qkv_bias=True,
    sliding_window="if used",
)
