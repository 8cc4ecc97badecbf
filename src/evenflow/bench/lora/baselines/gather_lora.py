"""LoRA by one copy of the weights per row, padded to the batch's largest LoRA rank: for comparison, not for serving.

What vLLM's CPU path does (``selected = weights[indices]``, then a product per row), here over factor rows, in slices of
bounded size, with masked padding. Rows of one adapter read its weights once each. Legend: see ``LoRABackend``;
R largest LoRA rank of the step at a module, D largest LoRA rank bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.shape import MODULES, SITES
from evenflow.serving.memory.layout import place

SCRATCH_ELEMENTS = 1 << 22
"""Weights are copied for so many elements' worth of rows at a time (8 MiB in bf16): beyond the caches it only gets slower."""


class GatherLoRA:
    """LoRABackend for any device and dtype."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        shape = storage.layout.shape
        self._lines = np.zeros((0, shape.num_layers, len(MODULES), 2, 0), np.int64)
        """[slots, L, M, (A, B), D]: row lines; beyond the rank the first row's, whose product is masked."""
        self._lora_ranks = np.zeros((0, shape.num_layers, len(MODULES)), np.int64)
        self._found: dict[tuple[int, int], tuple[torch.Tensor, ...]] = {}
        self._slots = self._token_row_index = np.zeros(0, np.int64)

    def warm_up(self) -> None:
        """Nothing to compile."""

    def bind(self, slot: int, signature: AdapterSignature, pages: Sequence[int]) -> None:
        """See ``LoRABackend.bind``."""
        placement = place(self._storage.layout, signature)
        lines = placement.lines(pages)
        self._grow(slot + 1, signature.max_lora_rank)
        self._lora_ranks[slot] = placement.lora_ranks
        for layer, module in np.argwhere(placement.lora_ranks):
            lora_rank = placement.lora_ranks[layer, module]
            for which, first in enumerate((placement.first_a, placement.first_b)):
                start = first[layer, module]
                padded = self._lines[slot, layer, module, which]
                padded[:lora_rank], padded[lora_rank:] = lines[start : start + lora_rank], lines[start]
        self._slots = np.zeros(0, np.int64)

    def plan(self, batch: Batch) -> None:
        """Find the rows that bear an adapter; what a layer needs is looked up once and kept while they stay the same."""
        slots = np.repeat(batch.adapter_slots, np.diff(batch.row_starts)).astype(np.int64)
        if not np.array_equal(slots, self._slots):
            self._slots = slots
            self._token_row_index = np.flatnonzero(slots >= 0)
            self._found = {}

    def run(self, layer: int, site: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See ``LoRABackend.run``."""
        if not len(self._token_row_index):
            return
        column = 0
        for module in SITES[site]:
            inputs, outputs = self._storage.layout.shape.module_widths(module)
            token_rows_N, lines_a_NR, lines_b_NR, is_padding_NR = self._token_rows_of(layer, MODULES.index(module))
            y_NO = y_TO[:, column : column + outputs]
            column += outputs
            num_token_rows, lora_rank = lines_a_NR.shape
            step = max(1, SCRATCH_ELEMENTS // max(1, lora_rank * max(inputs, outputs)))
            for first in range(0, num_token_rows, step):
                part = slice(first, min(first + step, num_token_rows))
                token_rows = token_rows_N[part]
                a_NRI = self._copy(lines_a_NR[part], inputs)
                s_NR = (
                    torch.bmm(x_TI[token_rows].unsqueeze(1), a_NRI.transpose(1, 2))
                    .squeeze(1)
                    .masked_fill_(is_padding_NR[part], 0)
                )
                b_NRO = self._copy(lines_b_NR[part], outputs)
                y_NO.index_add_(0, token_rows, torch.bmm(s_NR.unsqueeze(1), b_NRO).squeeze(1))

    def _copy(self, lines_NR: torch.Tensor, width: int) -> torch.Tensor:
        """One copy of the weights for every row: [N, R, width]."""
        return self._storage.factor_rows(lines_NR.flatten(), width).view(*lines_NR.shape, width)

    def _token_rows_of(self, layer: int, module: int) -> tuple[torch.Tensor, ...]:
        """(rows that have the module, their A lines, their B lines, which of these are padding)."""
        found = self._found.get((layer, module))
        if found is None:
            lora_ranks = self._lora_ranks[self._slots[self._token_row_index], layer, module]
            token_rows, lora_ranks = self._token_row_index[lora_ranks > 0], lora_ranks[lora_ranks > 0]
            largest = int(lora_ranks.max()) if len(lora_ranks) else 0
            lines = self._lines[self._slots[token_rows], layer, module, :, :largest]
            is_padding = np.arange(largest) >= lora_ranks[:, None]
            device = self._storage.device
            arrays = (token_rows, lines[:, 0], lines[:, 1], is_padding)
            found = self._found[layer, module] = tuple(torch.as_tensor(np.ascontiguousarray(a), device=device) for a in arrays)
        return found

    def _grow(self, num_slots: int, lora_rank: int) -> None:
        old_slots, old_lora_rank = len(self._lines), self._lines.shape[-1]
        if num_slots <= old_slots and lora_rank <= old_lora_rank:
            return
        slots, lora_rank = max(num_slots, old_slots if num_slots <= old_slots else 2 * old_slots), max(lora_rank, old_lora_rank)
        lines = np.zeros((slots, *self._lines.shape[1:-1], lora_rank), np.int64)
        lines[:old_slots, ..., :old_lora_rank] = self._lines
        if lora_rank > old_lora_rank and old_lora_rank:
            lines[:old_slots, ..., old_lora_rank:] = self._lines[..., :1]
        lora_ranks = np.zeros((slots, *self._lora_ranks.shape[1:]), np.int64)
        lora_ranks[:old_slots] = self._lora_ranks
        self._lines, self._lora_ranks = lines, lora_ranks
