"""Gemma: norms of 1 + w, gelu, embeddings that are scaled with the square root of the width."""

from evenflow.serving.models.family import ACTIVATIONS, ModelFamily, Traits
from evenflow.serving.models.fields import Fields


def _traits(fields: Fields) -> Traits:
    return Traits(embedding_multiplier=fields.integer("hidden_size") ** 0.5, is_embedding_multiplier_rounded=True)


FAMILY = ModelFamily(
    architecture="GemmaForCausalLM",
    model_type="gemma",
    published="Gemma, CodeGemma",
    reads_attention_bias=True,
    default_num_kv_heads=16,
    default_head_dim=256,
    default_is_tied=True,
    default_activation="gelu_pytorch_tanh",
    activations={**ACTIVATIONS, "gelu": "gelu tanh"},  # as the first of them were published
    traits=_traits,
    norm="rms 1 + w",
)
