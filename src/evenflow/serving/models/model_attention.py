"""The attention backend that a model needs: its rope tables, windows, factor and soft cap of the scores.

Windows that are not shorter than the longest sequence hide nothing and are dropped.
"""

from __future__ import annotations

from evenflow.serving.backends.attention.attention_backend import AttentionBackend
from evenflow.serving.backends.choose import ATTENTION_BACKENDS
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.rope_table import rope_tables


def make_attention(name: str, storage: Storage, config: ModelConfig, max_len: int) -> AttentionBackend:
    """The backend of this name over ``storage``, for sequences of up to ``max_len`` tokens. Raises ConfigError as it does."""
    ropes = [kind.rope for kind in config.layers]
    cos_PD, sin_PD, rope_of_layer = rope_tables(ropes, config.shape.head_dim, max_len)
    backend: AttentionBackend = ATTENTION_BACKENDS.load(name)(
        storage,
        cos_PD,
        sin_PD,
        config.attention_scale,
        rope_of_layer=rope_of_layer,
        windows=config.windows(max_len),
        softcap=config.traits.attention_softcap,
    )
    return backend


__all__ = ["make_attention"]
