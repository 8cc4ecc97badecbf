"""From the rows of a step to segments: rows of one adapter, for the Triton LoRA kernels. numpy only.

Decode rows and rows of prompts are kept apart: the former make small segments, whatever else is in the step, so that
their sums have one order always. Legend: see ``kernels.lora_triton``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments of one kind, for any site."""

    first: np.ndarray
    """int64 [n]: first place in the list of rows."""
    count: np.ndarray
    """int64 [n]: rows."""
    slot: np.ndarray
    """int64 [n]: the adapter."""


def rows_by_adapter(slots: np.ndarray, row_starts: np.ndarray, decode: bool) -> tuple[np.ndarray, np.ndarray]:
    """(rows, their slots), int64: those of sequences with an adapter and one row (``decode``), or several; sorted by slot.

    ``slots`` [S], ``row_starts`` [S + 1].
    """
    counts = np.diff(row_starts)
    chosen = np.flatnonzero((slots >= 0) & ((counts == 1) == decode))
    chosen = chosen[np.argsort(slots[chosen], kind="stable")]
    counts = counts[chosen]
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(row_starts[chosen], counts) + inside, np.repeat(slots[chosen].astype(np.int64), counts)


def cut(slots: np.ndarray, first_place: int, most_rows: int) -> Segments:
    """Cut a sorted list of rows' slots, whose first entry has place ``first_place``, into segments of up to ``most_rows``."""
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


__all__ = ["Segments", "cut", "rows_by_adapter"]
