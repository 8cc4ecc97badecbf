"""Paged attention on CUDA through Triton: decode rows and prefill chunks as tiles over pages.

Sequences of few rows are cut along their context (flash-decoding), long chunks along their rows. On the CPU it runs
under Triton's interpreter, for tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evenflow.serving.backends.attention.attention_backend import windows_of_layers
from evenflow.serving.backends.attention.attention_tiles import make_tiles, page_lists
from evenflow.serving.backends.attention.triton_rotation import TritonRotation
from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.devices.triton_device import TritonDevice, next_power_of_2, triton_device
from evenflow.serving.kernels.attention_triton import (
    HEADER_FIELDS,
    MERGE_FIELDS,
    TILE_FIELDS,
    attend_tiles,
    merge_parts,
)
from evenflow.serving.memory.layout import K, V

_PROGRAMS_PER_PROCESSOR = 4
"""Programs per multiprocessor of a launch whose size must not depend on the batch: as many as fit at once with their blocks of
K and V in shared memory."""

_MOST_PARTS = 64
"""Contexts are cut into no more parts than this."""


@dataclass(frozen=True, slots=True)
class AttentionBlocks:
    """Sizes of one kind of tile. ``rows`` counts (row, query head) pairs; ``tokens`` per step of the loop over the context."""

    rows: int
    tokens: int
    split_tokens: int
    """Contexts are cut at multiples of this."""
    num_warps: int
    num_stages: int


def choose_blocks(device: TritonDevice, itemsize: int, group: int) -> tuple[AttentionBlocks, AttentionBlocks]:
    """(for few rows, for long chunks). ``group``: query heads per key/value head."""
    least = max(16, next_power_of_2(group))
    if device.is_interpreted:
        return AttentionBlocks(least, 128, 256, 1, 1), AttentionBlocks(max(256, least), 128, 2048, 1, 1)
    if itemsize == 4:
        # fp32 products run on the ordinary units, with their operands in registers, so that smaller blocks are needed.
        return AttentionBlocks(least, 32, 256, 4, 2), AttentionBlocks(max(32, least), 32, 2048, 4, 2)
    return AttentionBlocks(least, 64, 256, 4, 3), AttentionBlocks(max(128, least), 64, 2048, 8, 2)


_Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Of each sequence: its first row, its rows, the position of the first, where its pages begin."""


@dataclass(slots=True)
class _Launch:
    """One kind of tile in the step at hand."""

    blocks: AttentionBlocks
    header: torch.Tensor
    tiles: torch.Tensor
    merges: torch.Tensor
    num_tiles: int
    num_merges: int


class TritonAttention:
    """AttentionBackend for bf16 and fp32, any even head_dim. Legend: see ``AttentionBackend``; P positions, E = head_dim / 2.

    ``few``, ``many``: sizes of tiles for few rows and for long chunks; None: what suits the device.
    Raises ConfigError for another dtype or device.
    """

    def __init__(
        self,
        storage: Storage,
        cos_PE: torch.Tensor,
        sin_PE: torch.Tensor,
        sm_scale: float,
        few: AttentionBlocks | None = None,
        many: AttentionBlocks | None = None,
        *,
        rope_of_layer: Sequence[int] = (),
        windows: Sequence[int | None] = (),
        softcap: float | None = None,
    ) -> None:
        shape = storage.layout.shape
        self._device = triton_device(storage.device, storage.dtype, attend_tiles)
        self._storage = storage
        self._rotation = TritonRotation(storage, cos_PE, sin_PE, rope_of_layer)
        self._num_positions = cos_PE.shape[-2]
        self._windows = windows_of_layers(windows, shape.num_layers)
        self._softcap = softcap
        self._scale = sm_scale * math.log2(math.e) * (1 if softcap is None else 2 / softcap)
        self._heads, self._dim = shape.num_kv_heads, shape.head_dim
        self._group = shape.num_heads // shape.num_kv_heads
        self._group_pad = next_power_of_2(self._group)
        self._dim_pad = max(16, next_power_of_2(shape.head_dim))
        self._page_stride = storage.layout.page_bytes // storage.layout.itemsize
        chosen = choose_blocks(self._device, storage.layout.itemsize, self._group)
        self._few, self._many = few or self._fit(chosen[0]), many or chosen[1]
        self._parts: dict[tuple[AttentionBlocks, int | None], tuple[torch.Tensor, torch.Tensor]] = {}
        self._launches: dict[int | None, list[_Launch]] = {}

    def _fit(self, blocks: AttentionBlocks) -> AttentionBlocks:
        """These tiles, with cuts of the context so far apart that the longest one has _MOST_PARTS parts."""
        split = max(blocks.split_tokens, next_power_of_2(-(-self._num_positions // _MOST_PARTS)))
        return AttentionBlocks(blocks.rows, blocks.tokens, split, blocks.num_warps, blocks.num_stages)

    def warm_up(self) -> None:
        """Nothing: Triton compiles at the first launch, and the worker's own warm-up launches every kernel."""

    def plan(self, batch: Batch) -> None:
        """List the step's tiles. A sequence has few rows if they fit in one tile."""
        layout = self._storage.layout
        assert batch.pages.max() < self._storage.num_pages
        self._rotation.plan(batch)
        counts = np.diff(batch.row_starts)
        starts = np.where(batch.context_lens > 0, batch.context_lens - counts, -1)
        listed, first_pages = page_lists(batch.pages, batch.context_lens, layout.page_tokens)
        is_few = counts <= max(1, self._few.rows // self._group)
        self._launches = {window: [] for window in self._windows}
        for blocks, chosen in ((self._few, is_few), (self._many, ~is_few)):
            if chosen.any():
                rows = (batch.row_starts[:-1][chosen], counts[chosen], starts[chosen], first_pages[chosen])
                for window, launches in self._launches.items():
                    launches.append(self._prepare(blocks, rows, window, batch))
        # Added last: only then does a fixed batch upload no more of the room kept for page numbers than it uses.
        longest = -(-self._num_positions // layout.page_tokens)
        self._pages = batch.staging.add(listed, batch.num_rows * longest if batch.is_fixed else None)
        self._is_fixed = batch.is_fixed

    def _prepare(self, blocks: AttentionBlocks, rows: _Rows, window: int | None, batch: Batch) -> _Launch:
        work = make_tiles(*rows, max(1, blocks.rows // self._group), blocks.split_tokens, window)
        mixed, total = self._room_for_parts(blocks, window, work.num_parts)
        header = np.array([len(work.tiles), len(work.merges), mixed.data_ptr(), total.data_ptr()], np.int64)
        assert len(header) == HEADER_FIELDS
        most_tiles = most_merges = None
        if batch.is_fixed:
            most_tiles = batch.num_rows * -(-self._num_positions // blocks.split_tokens) * TILE_FIELDS
            most_merges = batch.num_rows * MERGE_FIELDS
        return _Launch(
            blocks,
            batch.staging.add(header),
            batch.staging.add(work.tiles.reshape(-1), most_tiles),
            batch.staging.add(work.merges.reshape(-1), most_merges),
            len(work.tiles),
            len(work.merges),
        )

    def _room_for_parts(self, blocks: AttentionBlocks, window: int | None, num_parts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 [parts, K, ROWS, DIM_PAD] and [parts, K, 2, ROWS]. Read by address, so they may be replaced by larger ones."""
        room = self._parts.get((blocks, window))
        if room is None or len(room[0]) < num_parts:
            parts = next_power_of_2(max(num_parts, 16))
            shape = (parts, self._heads, blocks.rows, self._dim_pad)
            mixed = torch.empty(shape, dtype=torch.float32, device=self._storage.device)
            total = torch.empty((parts, self._heads, 2, blocks.rows), dtype=torch.float32, device=self._storage.device)
            room = self._parts[blocks, window] = (mixed, total)
        return room

    def run(self, layer: int, qkv_TC: torch.Tensor) -> torch.Tensor:
        """See ``AttentionBackend.run``."""
        self._rotation.run(layer, qkv_TC)
        out_TQ = torch.empty((len(qkv_TC), self._storage.layout.shape.q_width), dtype=qkv_TC.dtype, device=qkv_TC.device)
        for launch in self._launches[self._windows[layer]]:
            self._attend(layer, launch, qkv_TC, out_TQ)
        return out_TQ

    def _attend(self, layer: int, launch: _Launch, qkv_TC: torch.Tensor, out_TQ: torch.Tensor) -> None:
        layout, blocks = self._storage.layout, launch.blocks
        fixed = _PROGRAMS_PER_PROCESSOR * self._device.num_processors if self._is_fixed else None
        attend_tiles[(fixed or launch.num_tiles * self._heads,)](
            qkv_TC,
            self._storage.elements,
            out_TQ,
            launch.header,
            launch.tiles,
            self._pages,
            self._page_stride,
            layout.kv_offset(layer, K) // layout.itemsize,
            layout.kv_offset(layer, V) // layout.itemsize,
            qkv_TC.stride(0),
            out_TQ.stride(0),
            self._scale,
            (self._softcap or 0.0) * math.log2(math.e),
            HEADS=self._heads,
            GROUP=self._group,
            DIM=self._dim,
            DIM_PAD=self._dim_pad,
            PAGE_TOKENS=layout.page_tokens,
            ROWS=blocks.rows,
            TOKENS=blocks.tokens,
            WINDOW=self._windows[layer] or 0,
            CAPPED=self._softcap is not None,
            DOT=self._device.product,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
        )
        if launch.num_merges or self._is_fixed:
            merge_parts[(fixed or launch.num_merges * self._heads,)](
                out_TQ,
                launch.header,
                launch.merges,
                out_TQ.stride(0),
                HEADS=self._heads,
                GROUP=self._group,
                DIM=self._dim,
                GROUP_PAD=self._group_pad,
                DIM_PAD=self._dim_pad,
                ROWS=blocks.rows,
                num_warps=4,
            )


__all__ = ["AttentionBlocks", "TritonAttention", "choose_blocks"]
