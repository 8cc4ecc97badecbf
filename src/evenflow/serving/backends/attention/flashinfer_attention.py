"""Paged attention through FlashInfer, if it is installed: an alternative to our Triton kernels on CUDA.

The arena needs no copy: FlashInfer reads K and V of one layer as ``[pages, page_tokens, kv_heads, head_dim]`` tensors of any
page stride (its "NHD" layout, K and V apart), which are views of our pages. Rotation and writing stay ours. Written against
the documentation of its ``BatchPrefillWithPagedKVCacheWrapper``, which computes decode rows as chunks of one row. It sends
its own page tables to the device at every plan, and its splits depend on the whole step: a row's last bits may depend on
its company.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evenflow.base.errors import ConfigError
from evenflow.serving.backends.attention.attention_backend import windows_of_layers
from evenflow.serving.backends.attention.attention_tiles import page_lists
from evenflow.serving.backends.attention.triton_rotation import TritonRotation
from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.memory.layout import K, V

_HEAD_DIMS = (64, 128, 256)
_WORKSPACE_BYTES = 128 << 20
"""What its documentation recommends."""


class FlashInferAttention:
    """AttentionBackend for bf16 and head_dim 64, 128 or 256. Legend: see ``AttentionBackend``; P positions, E = head_dim / 2.

    Raises ConfigError if FlashInfer is not installed, and for another dtype or head_dim.
    """

    def __init__(
        self,
        storage: Storage,
        cos_PE: torch.Tensor,
        sin_PE: torch.Tensor,
        sm_scale: float,
        *,
        rope_of_layer: Sequence[int] = (),
        windows: Sequence[int | None] = (),
        softcap: float | None = None,
    ) -> None:
        try:
            import flashinfer
        except ImportError as error:
            raise ConfigError("kernels is 'flashinfer', which is not installed: pip install flashinfer-python") from error
        shape = storage.layout.shape
        if storage.dtype != torch.bfloat16 or shape.head_dim not in _HEAD_DIMS:
            raise ConfigError(
                f"FlashInfer for {storage.dtype} with head_dim {shape.head_dim}; allowed: bfloat16 with {_HEAD_DIMS}"
            )
        self._storage = storage
        self._rotation = TritonRotation(storage, cos_PE, sin_PE, rope_of_layer)
        self._windows = windows_of_layers(windows, shape.num_layers)
        self._sm_scale, self._softcap = sm_scale, softcap
        # One for each window, because a wrapper keeps its plan in its workspace.
        self._wrappers: dict[int | None, Any] = {}
        for window in dict.fromkeys(self._windows):
            workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=storage.device)
            self._wrappers[window] = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
        self._views = [(self._view(layer, K), self._view(layer, V)) for layer in range(shape.num_layers)]

    def _view(self, layer: int, half: int) -> torch.Tensor:
        """K or V of one layer: [pages, page_tokens, kv_heads, head_dim], a view of the arena."""
        layout, elements = self._storage.layout, self._storage.elements
        shape = layout.shape
        return elements.as_strided(
            (self._storage.num_pages, layout.page_tokens, shape.num_kv_heads, shape.head_dim),
            (layout.page_bytes // layout.itemsize, shape.kv_width, shape.head_dim, 1),
            elements.storage_offset() + layout.kv_offset(layer, half) // layout.itemsize,
        )

    def warm_up(self) -> None:
        """Nothing: what it compiles is compiled by the worker's own warm-up."""

    def plan(self, batch: Batch) -> None:
        """Hand over the page tables. A fixed batch is not supported."""
        assert not batch.is_fixed, "FlashInfer steps are not recorded"
        layout = self._storage.layout
        self._rotation.plan(batch)
        pages, first = page_lists(batch.pages, batch.context_lens, layout.page_tokens)
        for window, wrapper in self._wrappers.items():
            wrapper.plan(
                _int32(batch.row_starts),
                _int32(np.append(first, len(pages))),
                _int32(pages),
                _int32((batch.context_lens - 1) % layout.page_tokens + 1),
                layout.shape.num_heads,
                layout.shape.num_kv_heads,
                layout.shape.head_dim,
                layout.page_tokens,
                causal=True,
                sm_scale=self._sm_scale,
                window_left=-1 if window is None else window - 1,
                logits_soft_cap=self._softcap or 0.0,
                q_data_type=self._storage.dtype,
                kv_data_type=self._storage.dtype,
            )

    def run(self, layer: int, qkv_TC: torch.Tensor) -> torch.Tensor:
        """See ``AttentionBackend.run``."""
        shape = self._storage.layout.shape
        self._rotation.run(layer, qkv_TC)
        q_TND = qkv_TC[:, : shape.q_width].unflatten(1, (shape.num_heads, shape.head_dim))
        out_TND: torch.Tensor = self._wrappers[self._windows[layer]].run(q_TND, self._views[layer])
        return out_TND.flatten(1)


def _int32(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int32))


__all__ = ["FlashInferAttention"]
