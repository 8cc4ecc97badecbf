"""LoRA by batched products over stacks that are padded to the largest LoRA rank: for comparison, not for serving.

The batch's adapters lie in stacks of their own, one entry each, copied from the arena. S-LoRA's bmm baseline built its
stacks anew for every step; here an entry is copied when its adapter joins the batch and stays until it leaves, and the
modules of a site share one product with A. Adapters with many rows go through matrix products with their entry, unpadded.
Legend: see ``LoRABackend``; N adapters of the batch, C most rows of one of them, R largest LoRA rank, M modules of the site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.shape import MODULES, SITES
from evenflow.serving.memory.layout import AdapterPlacement, place

LONG_TOKEN_ROWS = 16
"""Adapters with more rows than this are multiplied alone: padding everybody to their length would cost more."""


@dataclass(frozen=True, slots=True)
class _Bound:
    placement: AdapterPlacement
    lines: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Site:
    """One site's stacks: entries on the second axis."""

    a_LNRMI: torch.Tensor
    b_LNRO: list[torch.Tensor]
    """One for each module."""
    columns: list[slice]


class PaddedLoRA:
    """LoRABackend for any device and dtype."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._bound: dict[int, _Bound] = {}
        self._entries: list[int] = []
        """Slot of each entry of the stacks."""
        self._sites: dict[str, _Site] = {}
        self._capacity = (0, 0)
        self._token_rows_of_step: np.ndarray | None = None
        self._max_lora_rank = 0
        self._short: torch.Tensor | None = None
        """int64 [N, C]: rows of each adapter, padded with -1."""
        self._long: list[tuple[int, torch.Tensor]] = []
        """(entry, rows)"""
        self._targets: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def warm_up(self) -> None:
        """Nothing to compile."""

    def bind(self, slot: int, signature: AdapterSignature, pages: Sequence[int]) -> None:
        """See ``LoRABackend.bind``."""
        placement = place(self._storage.layout, signature)
        self._bound[slot] = _Bound(placement, torch.as_tensor(placement.lines(pages), device=self._storage.device))
        self._entries = [-1 if entry == slot else entry for entry in self._entries]
        self._token_rows_of_step = None

    def plan(self, batch: Batch) -> None:
        """Bring the stacks in line with the batch's adapters; sort the rows by adapter."""
        slot_of_token_row = np.repeat(batch.adapter_slots, np.diff(batch.row_starts))
        if self._token_rows_of_step is not None and np.array_equal(slot_of_token_row, self._token_rows_of_step):
            return  # The last plan still holds: most steps that only decode have the same sequences as the step before.
        self._token_rows_of_step = slot_of_token_row
        slots = [int(slot) for slot in np.unique(slot_of_token_row) if slot >= 0]
        self._bring_in(slots)
        token_rows = [np.flatnonzero(slot_of_token_row == slot) for slot in self._entries]
        device = self._storage.device
        self._long = [(i, torch.as_tensor(r, device=device)) for i, r in enumerate(token_rows) if len(r) > LONG_TOKEN_ROWS]
        counts = [len(r) if len(r) <= LONG_TOKEN_ROWS else 0 for r in token_rows]
        self._short = None
        if any(counts):
            short = np.full((len(token_rows), max(counts)), -1, np.int64)
            for i, count in enumerate(counts):
                short[i, :count] = token_rows[i][:count]
            self._short = torch.as_tensor(short, device=device)
        self._targets = {}

    def run(self, layer: int, site: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See ``LoRABackend.run``."""
        if self._short is not None:
            self._run_batched(layer, site, x_TI, y_TO)
        stacks = self._sites.get(site)
        for entry, token_rows in self._long:
            assert stacks is not None
            lora_ranks = self._bound[self._entries[entry]].placement.lora_ranks
            x_CI = x_TI[token_rows]
            for m, module in enumerate(SITES[site]):
                lora_rank = int(lora_ranks[layer, MODULES.index(module)])
                if lora_rank:
                    s_CR = x_CI @ stacks.a_LNRMI[layer, entry, :lora_rank, m].T
                    y_TO[:, stacks.columns[m]].index_add_(0, token_rows, s_CR @ stacks.b_LNRO[m][layer, entry, :lora_rank])

    def _run_batched(self, layer: int, site: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        assert self._short is not None
        stacks, num, lora_rank = self._sites[site], len(self._entries), self._max_lora_rank
        short_NC = self._short
        x_NCI = x_TI[short_NC.clamp(min=0)]
        a_NRMI = stacks.a_LNRMI[layer, :num, :lora_rank]
        # x A^T in this order takes a quarter of the time of A x^T on a CPU.
        s_NCRM = torch.bmm(x_NCI, a_NRMI.flatten(1, 2).transpose(1, 2)).unflatten(2, (lora_rank, -1))
        for m, module in enumerate(SITES[site]):
            places, token_rows = self._target(layer, MODULES.index(module))
            if not len(token_rows):
                continue
            delta_NCO = torch.bmm(s_NCRM[..., m], stacks.b_LNRO[m][layer, :num, :lora_rank])
            y_TO[:, stacks.columns[m]].index_add_(0, token_rows, delta_NCO.flatten(0, 1).index_select(0, places))

    def _target(self, layer: int, module: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(places in [N, C] whose adapter has the module in this layer, their rows)."""
        found = self._targets.get((layer, module))
        if found is None:
            assert self._short is not None
            short = self._short.numpy(force=True)
            has = np.array([self._bound[slot].placement.lora_ranks[layer, module] > 0 for slot in self._entries])
            places = np.flatnonzero((short >= 0) & has[:, None])
            device = self._storage.device
            arrays = torch.as_tensor(places, device=device), torch.as_tensor(short.reshape(-1)[places], device=device)
            found = self._targets[layer, module] = arrays
        return found

    def _bring_in(self, slots: list[int]) -> None:
        """Make the entries those of ``slots``: what stays stays, newcomers take the places of those who left."""
        self._max_lora_rank = max((self._bound[slot].placement.signature.max_lora_rank for slot in slots), default=0)
        if len(slots) > self._capacity[0] or self._max_lora_rank > self._capacity[1]:
            self._allocate(max(len(slots), self._capacity[0]), max(self._max_lora_rank, self._capacity[1]))
        wanted = set(slots)
        new = [slot for slot in slots if slot not in self._entries]
        places = [i for i, slot in enumerate(self._entries) if slot not in wanted]
        places += range(len(self._entries), len(slots))
        self._entries += [-1] * (len(slots) - len(self._entries))
        for slot, place_of_slot in zip(new, places):
            self._entries[place_of_slot] = slot
            self._copy(slot, place_of_slot)
        # Entries have no gaps: the last ones move into what is left over.
        for gap in sorted(places[len(new) :], reverse=True):
            last = len(self._entries) - 1
            if gap != last:
                self._entries[gap] = self._entries[last]
                for site in self._sites.values():
                    for stack in (site.a_LNRMI, *site.b_LNRO):
                        stack[:, gap].copy_(stack[:, last])
            self._entries.pop()

    def _allocate(self, num_entries: int, lora_rank: int) -> None:
        """New stacks; the entries are copied again."""
        shape, layers = self._storage.layout.shape, self._storage.layout.shape.num_layers
        dtype, device = self._storage.dtype, self._storage.device
        self._capacity, self._entries = (num_entries, lora_rank), []
        for name, modules in SITES.items():
            widths = [shape.module_widths(module) for module in modules]
            ends = np.cumsum([out for _, out in widths]).tolist()
            self._sites[name] = _Site(
                torch.zeros((layers, num_entries, lora_rank, len(modules), widths[0][0]), dtype=dtype, device=device),
                [torch.zeros((layers, num_entries, lora_rank, out), dtype=dtype, device=device) for _, out in widths],
                [slice(end - out, end) for end, (_, out) in zip(ends, widths)],
            )

    def _copy(self, slot: int, entry: int) -> None:
        """Copy an adapter's rows into its entry; the rest of the entry is zero."""
        bound, shape = self._bound[slot], self._storage.layout.shape
        placement = bound.placement
        for name, modules in SITES.items():
            stacks = self._sites[name]
            for layer in range(shape.num_layers):
                for m, module in enumerate(modules):
                    index = MODULES.index(module)
                    lora_rank = int(placement.lora_ranks[layer, index])
                    for stack, first, width in (
                        (stacks.a_LNRMI[layer, entry, :, m], placement.first_a, shape.module_widths(module)[0]),
                        (stacks.b_LNRO[m][layer, entry], placement.first_b, shape.module_widths(module)[1]),
                    ):
                        if lora_rank:
                            start = int(first[layer, index])
                            stack[:lora_rank].copy_(self._storage.factor_rows(bound.lines[start : start + lora_rank], width))
                        stack[lora_rank:].zero_()
