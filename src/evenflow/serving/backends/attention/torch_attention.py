"""Paged attention through plain torch operations, sequence by sequence: on any device, but slowly. Others are tested by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evenflow.serving.backends.attention.attention_backend import tables_of_layers, windows_of_layers
from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.kernels.attention_torch import attend, rotate
from evenflow.serving.memory.layout import K, V


class TorchAttention:
    """AttentionBackend for any device and dtype. Legend: see ``AttentionBackend``; P positions, E = head_dim / 2."""

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
        num_layers = storage.layout.shape.num_layers
        self._storage = storage
        self._cos_of_layer = tables_of_layers(cos_PE.to(storage.device), num_layers, rope_of_layer)
        self._sin_of_layer = tables_of_layers(sin_PE.to(storage.device), num_layers, rope_of_layer)
        self._windows = windows_of_layers(windows, num_layers)
        self._sm_scale, self._softcap = sm_scale, softcap

    def warm_up(self) -> None:
        """Nothing to compile."""

    def plan(self, batch: Batch) -> None:
        """Look up which rows of ``Storage.kv_rows`` the step writes and reads, for layer 0."""
        layout, device = self._storage.layout, self._storage.device
        self._positions_T = batch.positions_T
        self._angles: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        write = layout.kv_row(batch.page_of_row, 0, K, batch.page_slot_of_row)
        self._write_rows = torch.as_tensor(write, device=device)
        self._sequences: dict[int | None, list[tuple[slice, int, torch.Tensor]]] = {}
        for window in dict.fromkeys(self._windows):
            self._sequences[window] = []
            for s in range(batch.num_sequences):
                rows = slice(int(batch.row_starts[s]), int(batch.row_starts[s + 1]))
                context = int(batch.context_lens[s])
                start = context - (rows.stop - rows.start)
                seen = 0 if window is None else max(0, start + 1 - window)
                tokens = torch.arange(seen, context, device=device)
                pages = torch.as_tensor(batch.pages[s], device=device)[tokens // layout.page_tokens]
                read_rows = layout.kv_row(pages, 0, K, tokens % layout.page_tokens)
                self._sequences[window].append((rows, start - seen, read_rows))

    def run(self, layer: int, qkv_TC: torch.Tensor) -> torch.Tensor:
        """See ``AttentionBackend.run``."""
        layout = self._storage.layout
        shape, kv_rows = layout.shape, self._storage.kv_rows
        q, k, v = qkv_TC.split([shape.q_width, shape.kv_width, shape.kv_width], dim=1)
        cos_PE, sin_PE = self._cos_of_layer[layer], self._sin_of_layer[layer]
        if cos_PE.data_ptr() not in self._angles:
            # Looked up in the first layer of a step that has this table, because the positions are uploaded after ``plan``.
            self._angles[cos_PE.data_ptr()] = cos_PE[self._positions_T], sin_PE[self._positions_T]
        angles = self._angles[cos_PE.data_ptr()]
        q_TND = rotate(q.unflatten(1, (shape.num_heads, shape.head_dim)), *angles)
        k_TKD = rotate(k.unflatten(1, (shape.num_kv_heads, shape.head_dim)), *angles)
        to_k, to_v = layout.kv_row(0, layer, K, 0), layout.kv_row(0, layer, V, 0)
        kv_rows.index_copy_(0, self._write_rows + to_k, k_TKD.flatten(1))
        kv_rows.index_copy_(0, self._write_rows + to_v, v)
        out_TND = torch.empty_like(q_TND)
        window = self._windows[layer]
        for rows, start, read_rows in self._sequences[window]:
            k_SKD = kv_rows.index_select(0, read_rows + to_k).unflatten(1, k_TKD.shape[1:])
            v_SKD = kv_rows.index_select(0, read_rows + to_v).unflatten(1, k_TKD.shape[1:])
            out = attend(q_TND[rows], k_SKD, v_SKD, start, self._sm_scale, window=window, softcap=self._softcap)
            out_TND[rows] = out
        return out_TND.flatten(1)
