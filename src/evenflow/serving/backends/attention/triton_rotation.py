"""Rotate q and k and write K and V into their pages, through Triton: the first half of attention, whoever does the second."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evenflow.serving.backends.attention.attention_backend import tables_of_layers
from evenflow.serving.backends.devices.batch import NO_PAGE, Batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.devices.triton_device import next_power_of_2, triton_device
from evenflow.serving.kernels.attention_triton import rotate_and_write
from evenflow.serving.memory.layout import K, V


class TritonRotation:
    """For one arena and its layers' rope tables (see ``AttentionBackend``). Raises ConfigError as ``triton_device`` does."""

    def __init__(self, storage: Storage, cos_PE: torch.Tensor, sin_PE: torch.Tensor, rope_of_layer: Sequence[int] = ()) -> None:
        shape = storage.layout.shape
        device = triton_device(storage.device, storage.dtype, rotate_and_write)
        self._storage = storage
        self._cos_of_layer = tables_of_layers(cos_PE.to(storage.device), shape.num_layers, rope_of_layer)
        self._sin_of_layer = tables_of_layers(sin_PE.to(storage.device), shape.num_layers, rope_of_layer)
        self._heads, self._dim = shape.num_kv_heads, shape.head_dim
        self._group = shape.num_heads // shape.num_kv_heads
        self._rows = 64 if device.is_interpreted else 1

    def plan(self, batch: Batch) -> None:
        """Note where the step's rows are written."""
        assert batch.context_lens.max() <= len(self._cos_of_layer[0]), "positions beyond the rope table"
        assert batch.page_of_row.max() < self._storage.num_pages
        write_rows = self._storage.layout.kv_row(batch.page_of_row, 0, K, batch.page_slot_of_row)
        write_rows[batch.page_of_row == NO_PAGE] = -1
        self._positions_T = batch.positions_T
        self._write_rows_T = batch.staging.add(write_rows)

    def run(self, layer: int, qkv_TC: torch.Tensor) -> None:
        """Rotate the q of ``qkv_TC`` (contiguous) in place; write rotated k, and v, into the arena."""
        assert qkv_TC.is_contiguous()
        assert len(qkv_TC) == len(self._write_rows_T)
        layout, num_rows = self._storage.layout, len(qkv_TC)
        rotate_and_write[(-(-num_rows // self._rows), self._heads)](
            qkv_TC,
            self._storage.elements,
            self._positions_T,
            self._write_rows_T,
            self._cos_of_layer[layer],
            self._sin_of_layer[layer],
            num_rows,
            layout.kv_row(0, layer, K, 0),
            layout.kv_row(0, layer, V, 0),
            qkv_TC.stride(0),
            HEADS=self._heads,
            GROUP=self._group,
            DIM=self._dim,
            GROUP_PAD=next_power_of_2(self._group),
            HALF_PAD=next_power_of_2(self._dim // 2),
            ROWS=self._rows,
            num_warps=1,
        )


__all__ = ["TritonRotation"]
