"""From a StepPlan to the tensors and arrays that every backend and the model read.

Legend: T rows (tokens) of the step, S sequences, L rows whose logits are wanted.
Built once per step; valid for all layers. Knows pages and slots; not clients, nor how requests begin and end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from evenflow.serving.backends.devices.staging import DirectStaging, Staging, make_staging
from evenflow.serving.core.plan import NO_ADAPTER_SLOT, StepPlan

NO_PAGE = -1
"""Page of a token row that only fills a batch up to a fixed size: its K and V are not written."""


@dataclass(slots=True)
class Batch:
    """One step's rows, in plan order: the rows of sequence s are [row_starts[s], row_starts[s + 1]).

    Tensors on another device than the CPU hold their values after ``staging.upload()``.
    """

    token_ids_T: torch.Tensor
    """int64, on the model's device."""
    positions_T: torch.Tensor
    """int64, on the model's device."""
    row_starts: np.ndarray
    """int64 [S + 1], host."""
    context_lens: np.ndarray
    """int64 [S], host: tokens of the sequence that are in the arena after this step."""
    pages: np.ndarray
    """int64 [S, widest], host: page table, padded with 0 (padding is never read)."""
    page_of_row: np.ndarray
    """int64 [T], host: page that receives the row's K and V."""
    page_slot_of_row: np.ndarray
    """int64 [T], host: place of the row in its page, in tokens."""
    adapter_slots: np.ndarray
    """int32 [S], host: LoRA slot of each sequence, -1 for base-only."""
    logits_rows: torch.Tensor
    """int64 [L], on the device: rows whose logits are wanted (last rows of sequences that sample, and prompt logprobs)."""
    logits_row_numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """The same on the host."""
    staging: Staging = field(default_factory=DirectStaging)
    """Where backends add what they want on the device; the caller uploads it once, after all have planned."""
    is_fixed: bool = False
    """One row per sequence, and everything that is added has a capacity that depends on the number of rows alone. Rows
    behind the plan's own only fill up: page NO_PAGE, context 0, no adapter."""

    @property
    def num_rows(self) -> int:
        """Rows of the step."""
        return int(self.row_starts[-1])

    @property
    def num_sequences(self) -> int:
        """Sequences in the step."""
        return len(self.context_lens)


def build_batch(plan: StepPlan, page_tokens: int, device: torch.device, staging: Staging | None = None) -> Batch:
    """Lay out ``plan`` as arrays. ``page_tokens``: tokens per page. ``staging``: by default one for this batch alone."""
    staging = make_staging(device) if staging is None else staging
    sequences = plan.sequences
    num_rows = np.fromiter((len(s.token_ids) for s in sequences), np.int64, len(sequences))
    starts = np.fromiter((s.start for s in sequences), np.int64, len(sequences))
    row_starts = np.zeros(len(sequences) + 1, np.int64)
    np.cumsum(num_rows, out=row_starts[1:])
    total = int(row_starts[-1])
    token_ids = np.fromiter((t for s in sequences for t in s.token_ids), np.int64, total)
    sequence_of_row = np.repeat(np.arange(len(sequences)), num_rows)
    positions = np.arange(total) - np.repeat(row_starts[:-1], num_rows) + np.repeat(starts, num_rows)
    pages = np.zeros((len(sequences), max(len(s.pages) for s in sequences)), np.int64)
    for i, sequence in enumerate(sequences):
        pages[i, : len(sequence.pages)] = sequence.pages
    logits_rows: list[int] = []
    for i, sequence in enumerate(sequences):
        first, last = int(row_starts[i]), int(row_starts[i + 1])
        if sequence.prompt_logprobs is not None:
            logits_rows.extend(range(first, last))
        elif sequence.sample is not None:
            logits_rows.append(last - 1)
    return Batch(
        token_ids_T=staging.add(token_ids),
        positions_T=staging.add(positions),
        row_starts=row_starts,
        context_lens=starts + num_rows,
        pages=pages,
        page_of_row=pages[sequence_of_row, positions // page_tokens],
        page_slot_of_row=positions % page_tokens,
        adapter_slots=np.fromiter((s.adapter_slot for s in sequences), np.int32, len(sequences)),
        logits_rows=staging.add(np.array(logits_rows, np.int64)),
        logits_row_numbers=np.array(logits_rows, np.int64),
        staging=staging,
    )


def build_fixed_batch(plan: StepPlan, num_rows: int, page_tokens: int, staging: Staging) -> Batch:
    """Lay out a ``plan`` of one row per sequence, all of them sampled, filled up to ``num_rows`` rows: see ``is_fixed``.

    Raises ValueError for another plan, or one of more rows.
    """
    sequences = plan.sequences
    count = len(sequences)
    if count > num_rows or not is_decode(plan):
        raise ValueError(f"a plan of {count} sequences and {plan.num_tokens} rows for {num_rows} rows, one per sequence")

    def column(values: Iterable[int], fill: int) -> np.ndarray:
        array = np.full(num_rows, fill, np.int64)
        array[:count] = np.fromiter(values, np.int64, count)
        return array

    positions = column((s.start for s in sequences), 0)
    pages = np.zeros((num_rows, max((len(s.pages) for s in sequences), default=1)), np.int64)
    for i, sequence in enumerate(sequences):
        pages[i, : len(sequence.pages)] = sequence.pages
    page_of_row = pages[np.arange(num_rows), positions // page_tokens]
    page_of_row[count:] = NO_PAGE
    context_lens = positions + 1
    context_lens[count:] = 0
    return Batch(
        token_ids_T=staging.add(column((s.token_ids[0] for s in sequences), 0)),
        positions_T=staging.add(positions),
        row_starts=np.arange(num_rows + 1),
        context_lens=context_lens,
        pages=pages,
        page_of_row=page_of_row,
        page_slot_of_row=positions % page_tokens,
        adapter_slots=column((s.adapter_slot for s in sequences), NO_ADAPTER_SLOT).astype(np.int32),
        logits_rows=staging.add(np.arange(num_rows)),
        logits_row_numbers=np.arange(num_rows),
        staging=staging,
        is_fixed=True,
    )


def is_decode(plan: StepPlan) -> bool:
    """True if every sequence has one row, is sampled, and asks for nothing else."""
    return all(len(s.token_ids) == 1 and s.sample is not None and s.prompt_logprobs is None for s in plan.sequences)
