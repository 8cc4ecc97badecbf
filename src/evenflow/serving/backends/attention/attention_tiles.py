"""From the sequences of a step to tiles of paged attention: which rows against which part of their context. numpy only.

A tile's cuts depend on its sequence's own rows and positions, never on the rest of the step, so that a row's result
does not either. Legend: see ``kernels.attention_triton``, whose lists these are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evenflow.serving.memory.layout import BLOCK_TOKENS

_FIELDS, _MERGE_FIELDS = 8, 4


@dataclass(frozen=True, slots=True)
class Tiles:
    """Work of one launch."""

    tiles: np.ndarray
    """int32 [n, 8], as the kernel reads them."""
    merges: np.ndarray
    """int32 [rows that were cut, 4]."""
    num_parts: int


def make_tiles(
    rows: np.ndarray,
    counts: np.ndarray,
    starts: np.ndarray,
    first_pages: np.ndarray,
    tile_rows: int,
    split_tokens: int,
    window: int | None = None,
) -> Tiles:
    """Cut sequences into tiles of up to ``tile_rows`` rows, and their contexts at multiples of ``split_tokens``.

    One entry per sequence, int64: its first row in the step, its rows, the position of the first, and where its pages begin
    in the list of pages. A sequence without rows or with a negative position has no tile. ``window``: how many tokens a row
    sees, its own included; None: all before it. A tile begins at the block of the first token that one of its rows sees.
    """
    tiles_of = np.where(starts >= 0, -(-counts // tile_rows), 0)
    sequence = np.repeat(np.arange(len(counts)), tiles_of)
    offset = (np.arange(len(sequence)) - np.repeat(np.cumsum(tiles_of) - tiles_of, tiles_of)) * tile_rows
    first, position = rows[sequence] + offset, starts[sequence] + offset
    height = np.minimum(counts[sequence] - offset, tile_rows)
    end = position + height

    seen = np.zeros_like(end) if window is None else np.maximum(position + 1 - window, 0) // BLOCK_TOKENS * BLOCK_TOKENS
    parts_of = -(-end // split_tokens) - seen // split_tokens
    tile = np.repeat(np.arange(len(sequence)), parts_of)
    inside = np.arange(len(tile)) - np.repeat(np.cumsum(parts_of) - parts_of, parts_of)
    cut_begin = (inside + seen[tile] // split_tokens) * split_tokens
    is_cut = parts_of[tile] > 1
    part = np.where(is_cut, np.cumsum(is_cut) - 1, -1)
    tiles = np.zeros((len(tile), _FIELDS), np.int32)
    tiles[:, 0], tiles[:, 1], tiles[:, 2] = first[tile], height[tile], position[tile]
    tiles[:, 3], tiles[:, 4] = np.maximum(cut_begin, seen[tile]), np.minimum(end[tile], cut_begin + split_tokens)
    tiles[:, 5], tiles[:, 6] = first_pages[sequence[tile]], part

    cut = np.flatnonzero(parts_of > 1)
    first_part = (np.cumsum(parts_of[cut]) - parts_of[cut]) if len(cut) else cut
    tile = np.repeat(np.arange(len(cut)), height[cut])
    inside = np.arange(len(tile)) - np.repeat(np.cumsum(height[cut]) - height[cut], height[cut])
    merges = np.zeros((len(tile), _MERGE_FIELDS), np.int32)
    merges[:, 0], merges[:, 1] = first[cut][tile] + inside, inside
    merges[:, 2], merges[:, 3] = first_part[tile], parts_of[cut][tile]
    return Tiles(tiles, merges, int(parts_of[cut].sum()))


def page_lists(pages: np.ndarray, context_lens: np.ndarray, page_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(int32: the pages of all sequences, one after another; int64 [S]: where each one's begin)."""
    used = -(-context_lens // page_tokens)
    listed = pages[np.arange(pages.shape[1]) < used[:, None]].astype(np.int32)
    return listed, np.cumsum(used) - used


__all__ = ["Tiles", "make_tiles", "page_lists"]
