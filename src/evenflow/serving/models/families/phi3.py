"""Phi-3 and Phi-4: q, k and v stored as one matrix, gate and up as another; some rotate only a part of every head."""

from evenflow.serving.models.family import ModelFamily

FAMILY = ModelFamily(
    architecture="Phi3ForCausalLM",
    model_type="phi3",
    published="Phi-3 mini and medium, Phi-3.5 mini, Phi-4, Phi-4-mini",
    default_norm_eps=1e-5,
    default_partial=1.0,
    sliding_window="always",
    default_window=None,
    fused={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")},
)
