"""Helium: Llama that rotates neighbouring elements together."""

from evenflow.serving.models.family import ModelFamily

FAMILY = ModelFamily(
    architecture="HeliumForCausalLM",
    model_type="helium",
    published="Helium 1",
    reads_attention_bias=True,
    reads_mlp_bias=True,
    default_head_dim=128,
    default_theta=100_000.0,
    default_norm_eps=1e-8,
    rotates_neighbours=True,
)
