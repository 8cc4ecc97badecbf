"""Llama, and the many models that compute as it does."""

from evenflow.serving.models.family import ModelFamily

FAMILY = ModelFamily(
    architecture="LlamaForCausalLM",
    model_type="llama",
    published="Llama 2 to 3.3, SmolLM 2, TinyLlama, Yi, DeepSeek-R1-Distill-Llama",
    reads_attention_bias=True,
    reads_mlp_bias=True,
)
