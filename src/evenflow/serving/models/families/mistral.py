"""Mistral: Llama with its own defaults, whose first version sees 4096 tokens."""

from evenflow.serving.models.family import ModelFamily

FAMILY = ModelFamily(
    architecture="MistralForCausalLM",
    model_type="mistral",
    published="Mistral 7B, Nemo, Small, Large",
    default_num_kv_heads=8,
    sliding_window="always",
)
