"""From the token rows of a step to segments for the Triton LoRA kernels: token rows of one adapter. numpy only.

Token rows of sequences that decode and of sequences that compute a prompt are kept apart. A decoding sequence is always
in a small segment, whatever else is in the step, so that its sums are added up in the same order in every step.
Legend: n segments or token rows, S sequences; see ``kernels.lora_triton``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments of one kind, for any site."""

    first: np.ndarray
    """int64 [n]: place of the segment's first token row in the list of token rows that is sorted by adapter."""
    count: np.ndarray
    """int64 [n]: token rows of the segment."""
    slot: np.ndarray
    """int64 [n]: slot of the segment's adapter."""


def token_rows_by_adapter(slots: np.ndarray, row_starts: np.ndarray, decode: bool) -> tuple[np.ndarray, np.ndarray]:
    """The token rows that bear an adapter, sorted by slot, and the slot of each: two int64 arrays [n].

    Only those of sequences with exactly one token row (``decode``), or only those of sequences with several.
    ``slots`` int32 [S]: slot of each sequence, -1 for none; ``row_starts`` int64 [S + 1]: see ``Batch``.
    """
    counts = np.diff(row_starts)
    chosen = np.flatnonzero((slots >= 0) & ((counts == 1) == decode))
    chosen = chosen[np.argsort(slots[chosen], kind="stable")]
    counts = counts[chosen]
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(row_starts[chosen], counts) + inside, np.repeat(slots[chosen].astype(np.int64), counts)


def cut(slots: np.ndarray, first_place: int, most_rows: int) -> Segments:
    """Cut ``slots`` (int64 [n], sorted: slots of token rows) into segments of one slot and at most ``most_rows`` token rows.

    ``first_place``: place of the first entry of ``slots`` in the list of token rows that the kernels read.
    """
    is_first = np.ones(len(slots), bool)
    is_first[1:] = slots[1:] != slots[:-1]
    run_starts = np.flatnonzero(is_first)
    run_lengths = np.diff(np.append(run_starts, len(slots)))
    segments_of = -(-run_lengths // most_rows)
    run = np.repeat(np.arange(len(run_starts)), segments_of)
    offset = (np.arange(len(run)) - np.repeat(np.cumsum(segments_of) - segments_of, segments_of)) * most_rows
    return Segments(
        first=first_place + run_starts[run] + offset,
        count=np.minimum(run_lengths[run] - offset, most_rows),
        slot=slots[run_starts[run]],
    )


__all__ = ["Segments", "cut", "token_rows_by_adapter"]
