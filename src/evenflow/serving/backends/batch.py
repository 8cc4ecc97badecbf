"""From a StepPlan to the tensors and arrays that every backend and the model read.

Legend: T rows (tokens) of the step, S sequences, L rows whose logits are wanted.
Built once per step; valid for all layers. Knows pages and slots, not clients or requests' lives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evenflow.serving.core.plan import StepPlan


@dataclass(slots=True)
class Batch:
    """One step's rows, in plan order: the rows of sequence s are [row_starts[s], row_starts[s + 1])."""

    token_ids_T: torch.Tensor
    """int64, on the model's device."""
    positions_T: torch.Tensor
    """int64, on the model's device."""
    row_starts: np.ndarray
    """int64 [S + 1], host."""
    context_lens: np.ndarray
    """int64 [S], host: tokens in the arena after this step (start + rows)."""
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

    @property
    def num_rows(self) -> int:
        """Rows of the step."""
        return int(self.row_starts[-1])

    @property
    def num_sequences(self) -> int:
        """Sequences in the step."""
        return len(self.context_lens)


def build_batch(plan: StepPlan, page_tokens: int, device: torch.device) -> Batch:
    """Lay out ``plan`` as arrays. ``page_tokens``: tokens per page."""
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
        token_ids_T=torch.from_numpy(token_ids).to(device),
        positions_T=torch.from_numpy(positions).to(device),
        row_starts=row_starts,
        context_lens=starts + num_rows,
        pages=pages,
        page_of_row=pages[sequence_of_row, positions // page_tokens],
        page_slot_of_row=positions % page_tokens,
        adapter_slots=np.fromiter((s.adapter_slot for s in sequences), np.int32, len(sequences)),
        logits_rows=torch.tensor(logits_rows, dtype=torch.int64, device=device),
    )
