"""Paged attention on the CPU: the numba row kernel for decode and chunks, torch's where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from evenflow.base.errors import ConfigError
from evenflow.serving.backends.attention.attention_backend import tables_of_layers, windows_of_layers
from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.kernels.attention_cpu import attend, scratch_floats
from evenflow.serving.kernels.rope_cpu import rotate_and_write
from evenflow.serving.kernels.simd import element_of
from evenflow.serving.memory.layout import BLOCK_TOKENS, K, V

MAX_ROWS_BY_ROW = 256
"""Chunks of up to this many token rows are computed by the row kernel, row by row. That was measured to take 0.3 to 1.0 of the
time of a gather and torch's attention in bf16, and up to 1.3 of it in fp32."""

MAX_ROWS_BY_ROW_WITH_AMX = 8
"""The limit for bf16 on a processor with matrix units, where torch's attention is faster from 16 token rows on."""


def max_rows_by_row(dtype: torch.dtype) -> int:
    """The limit that fits this machine's processor and ``dtype``."""
    has_amx = torch.cpu.get_capabilities().get("amx_bf16", False) if hasattr(torch.cpu, "get_capabilities") else False
    return MAX_ROWS_BY_ROW_WITH_AMX if has_amx and dtype == torch.bfloat16 else MAX_ROWS_BY_ROW


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows of a sequence that has too many of them in this step for the row kernel."""

    rows: slice
    read_rows: torch.Tensor | None
    """int64 [tokens]: rows of ``Storage.kv_rows`` that hold K of layer 0, by position; None: K and V are those of ``rows``."""
    mask_TS: torch.Tensor | None
    """Additive mask; None: causal, and no row's window ends in between."""


@dataclass(slots=True)
class _Work:
    """A step's work in the layers that have the same window."""

    begins: np.ndarray
    """int64: the first token that each task of the row kernel sees."""
    cut_tasks: np.ndarray
    cut_heads: np.ndarray
    chunks: list[_Chunk]


class CPUAttention:
    """AttentionBackend for bf16 and fp32 on the CPU. Legend: see ``AttentionBackend``; P positions, E = head_dim / 2.

    ``num_threads``: how many parts the row kernel's work is cut into; None: as many as torch and numba both use.
    ``row_limit``: chunks of more rows go through torch; None: ``max_rows_by_row``.
    Raises ConfigError for another dtype and for a head_dim that is not a multiple of 16.
    """

    def __init__(
        self,
        storage: Storage,
        cos_PE: torch.Tensor,
        sin_PE: torch.Tensor,
        sm_scale: float,
        num_threads: int | None = None,
        row_limit: int | None = None,
        *,
        rope_of_layer: Sequence[int] = (),
        windows: Sequence[int | None] = (),
        softcap: float | None = None,
    ) -> None:
        shape = storage.layout.shape
        if storage.dtype not in (torch.bfloat16, torch.float32) or shape.head_dim % 16:
            raise ConfigError(f"{storage.dtype} with head_dim {shape.head_dim}; allowed: bf16 or fp32 with a multiple of 16")
        self._storage = storage
        self._cos_of_layer = tables_of_layers(cos_PE, shape.num_layers, rope_of_layer)
        self._sin_of_layer = tables_of_layers(sin_PE, shape.num_layers, rope_of_layer)
        self._angles_at = [(cos.data_ptr(), sin.data_ptr()) for cos, sin in zip(self._cos_of_layer, self._sin_of_layer)]
        self._row_limit = max_rows_by_row(storage.dtype) if row_limit is None else row_limit
        if softcap is not None:
            self._row_limit = 1 << 62  # Torch's attention has no soft cap.
        self._windows = windows_of_layers(windows, shape.num_layers)
        self._sm_scale, self._softcap = np.float32(sm_scale), np.float32(softcap or 0)
        self._element = element_of(storage.layout.itemsize)
        self._num_threads = num_threads or min(torch.get_num_threads(), numba.get_num_threads())
        # 16 floats are a cache line: with one to spare, two threads never write to the same cache line.
        self._scratch = np.empty((self._num_threads, scratch_floats(shape.num_heads, shape.head_dim) + 16), np.float32)
        self._work: dict[int | None, _Work] = {}

    def warm_up(self) -> None:
        """Compile both kernels, or load what was compiled before, by running them on no token rows."""
        none = np.zeros(0, np.int64)
        shape = self._storage.layout.shape
        self._positions, self._page_of_row, self._slot_of_row = none, none, none
        self._rows, self._page_tables, self._contexts = none, none, none
        self._work = {window: self._divide(none, window) for window in self._windows}
        qkv_TC = torch.empty((0, shape.q_width + 2 * shape.kv_width), dtype=self._storage.dtype)
        self._rotate_and_write(0, qkv_TC)
        self._attend(0, qkv_TC, torch.empty((0, shape.q_width), dtype=self._storage.dtype))

    def plan(self, batch: Batch) -> None:
        """Decide which sequences the row kernel computes and which are chunks for torch.

        The row kernel's work is cut so that all threads read the same number of bytes of K and V.
        """
        assert batch.pages.max() < self._storage.num_pages
        self._positions = batch.positions_T.numpy()
        assert self._positions.max() < len(self._cos_of_layer[0]), "positions beyond the rope table"
        self._page_of_row, self._slot_of_row = batch.page_of_row, batch.page_slot_of_row
        self._pages = np.ascontiguousarray(batch.pages)  # Kept as an attribute because the kernel reads it by its address.
        num_rows = np.diff(batch.row_starts)
        sequence_of_row = np.repeat(np.arange(len(num_rows)), num_rows)
        rows = np.flatnonzero(num_rows[sequence_of_row] <= self._row_limit)
        self._rows, self._contexts = rows, self._positions[rows] + 1
        self._page_tables = self._pages.ctypes.data + self._pages.strides[0] * sequence_of_row[rows]
        self._work = {window: self._divide(self._contexts, window) for window in self._windows}
        for s in np.flatnonzero(num_rows > self._row_limit):
            context = int(batch.context_lens[s])
            first, last = int(batch.row_starts[s]), int(batch.row_starts[s + 1])
            for window, work in self._work.items():
                pieces = last - first if window is None else max(window, MAX_ROWS_BY_ROW)
                for piece in range(first, last, pieces):
                    rows_of_piece = slice(piece, min(piece + pieces, last))
                    work.chunks.append(self._chunk(rows_of_piece, context - last + piece, int(s), window))

    def _chunk(self, rows: slice, start: int, sequence: int, window: int | None) -> _Chunk:
        """``start``: position of the first of these rows."""
        layout = self._storage.layout
        num_rows, context = rows.stop - rows.start, start + rows.stop - rows.start
        seen = 0 if window is None else max(0, start + 1 - window)
        mask_TS = read_rows = None
        if start:
            tokens = np.arange(seen, context)
            pages = self._pages[sequence][tokens // layout.page_tokens]
            read_rows = torch.from_numpy(layout.kv_row(pages, 0, K, tokens % layout.page_tokens))
        if start or (window is not None and window < num_rows):
            mask_TS = torch.full((num_rows, context - seen), -torch.inf, dtype=self._storage.dtype).triu_(start - seen + 1)
            if window is not None:
                rows_T, tokens_S = torch.arange(start, context)[:, None], torch.arange(seen, context)
                mask_TS.masked_fill_(tokens_S <= rows_T - window, -torch.inf)
        return _Chunk(rows, read_rows, mask_TS)

    def _divide(self, contexts: np.ndarray, window: int | None) -> _Work:
        """Cut the row kernel's tasks into ``num_threads`` parts of equal bytes, at any task and key/value head."""
        heads, num_tasks = self._storage.layout.shape.num_kv_heads, len(contexts)
        begins = np.zeros_like(contexts) if window is None else np.maximum(contexts - window, 0)
        sizes = contexts - begins
        ends = np.cumsum(sizes)
        targets = (ends[-1] if num_tasks else 0) * np.arange(self._num_threads + 1) / self._num_threads
        tasks = np.minimum(np.searchsorted(ends, targets, side="right"), num_tasks)
        cut_heads = np.zeros(self._num_threads + 1, np.int64)
        inside = tasks < num_tasks
        cut = tasks[inside]
        cut_heads[inside] = np.rint((targets[inside] - (ends[cut] - sizes[cut])) * heads / sizes[cut])
        tasks[-1], cut_heads[-1] = num_tasks, 0
        return _Work(begins, tasks, cut_heads, [])

    def run(self, layer: int, qkv_TC: torch.Tensor) -> torch.Tensor:
        """See ``AttentionBackend.run``."""
        assert qkv_TC.is_contiguous()
        assert len(qkv_TC) == len(self._positions)
        self._rotate_and_write(layer, qkv_TC)
        out_TQ = torch.empty((len(qkv_TC), self._storage.layout.shape.q_width), dtype=qkv_TC.dtype)
        if len(self._rows):
            self._attend(layer, qkv_TC, out_TQ)
        for chunk in self._work[self._windows[layer]].chunks:
            self._attend_chunk(layer, chunk, qkv_TC, out_TQ)
        return out_TQ

    def _rotate_and_write(self, layer: int, qkv_TC: torch.Tensor) -> None:
        layout = self._storage.layout
        rotate_and_write(
            self._element,
            self._num_threads,
            self._storage.address,
            layout.page_bytes,
            layout.kv_offset(layer, K),
            layout.kv_offset(layer, V),
            qkv_TC.data_ptr(),
            qkv_TC.shape[1] * layout.itemsize,
            self._positions,
            self._page_of_row,
            self._slot_of_row,
            *self._angles_at[layer],
            layout.shape.num_heads,
            layout.shape.num_kv_heads,
            layout.shape.head_dim,
        )

    def _attend(self, layer: int, qkv_TC: torch.Tensor, out_TQ: torch.Tensor) -> None:
        layout, work = self._storage.layout, self._work[self._windows[layer]]
        attend(
            self._element,
            self._num_threads,
            self._storage.address,
            layout.page_bytes,
            layout.page_tokens // BLOCK_TOKENS,
            layout.kv_offset(layer, K),
            layout.kv_offset(layer, V),
            qkv_TC.data_ptr(),
            qkv_TC.shape[1] * layout.itemsize,
            out_TQ.data_ptr(),
            out_TQ.shape[1] * layout.itemsize,
            self._rows,
            self._page_tables,
            work.begins,
            self._contexts,
            work.cut_tasks,
            work.cut_heads,
            self._sm_scale,
            self._softcap,
            layout.shape.num_kv_heads,
            layout.shape.num_heads // layout.shape.num_kv_heads,
            layout.shape.head_dim,
            self._scratch.ctypes.data,
            self._scratch.strides[0],
        )

    def _attend_chunk(self, layer: int, chunk: _Chunk, qkv_TC: torch.Tensor, out_TQ: torch.Tensor) -> None:
        layout = self._storage.layout
        shape = layout.shape
        q, k, v = qkv_TC[chunk.rows].split([shape.q_width, shape.kv_width, shape.kv_width], dim=1)
        if chunk.read_rows is not None:
            kv_rows = self._storage.kv_rows
            k = kv_rows[layout.kv_row(0, layer, K, 0) :].index_select(0, chunk.read_rows)
            v = kv_rows[layout.kv_row(0, layer, V, 0) :].index_select(0, chunk.read_rows)
        out_1NTD = scaled_dot_product_attention(
            q.unflatten(1, (shape.num_heads, shape.head_dim)).transpose(0, 1)[None],
            k.unflatten(1, (shape.num_kv_heads, shape.head_dim)).transpose(0, 1)[None],
            v.unflatten(1, (shape.num_kv_heads, shape.head_dim)).transpose(0, 1)[None],
            attn_mask=chunk.mask_TS,
            is_causal=chunk.mask_TS is None,
            scale=float(self._sm_scale),
            enable_gqa=shape.num_heads != shape.num_kv_heads,
        )
        out_TQ[chunk.rows].unflatten(1, (shape.num_heads, shape.head_dim)).copy_(out_1NTD[0].transpose(0, 1))
