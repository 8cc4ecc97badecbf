"""LoRA over arena rows through plain torch operations, adapter by adapter: right everywhere, fast nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evenflow.serving.backends.batch import Batch
from evenflow.serving.backends.storage import Storage
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.shape import MODULES, SITES
from evenflow.serving.kernels.lora_torch import add_lora
from evenflow.serving.memory.layout import AdapterPlacement, place


@dataclass(frozen=True, slots=True)
class _Bound:
    """What a slot means now."""

    placement: AdapterPlacement
    lines: torch.Tensor
    """int64 [R], on the device."""


class TorchLoRA:
    """LoRABackend for any device and dtype. Legend: see ``LoRABackend``."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._bound: dict[int, _Bound] = {}
        self._segments: list[tuple[_Bound, torch.Tensor]] = []

    def warm_up(self) -> None:
        """Nothing to compile."""

    def bind(self, slot: int, signature: AdapterSignature, pages: Sequence[int]) -> None:
        """See ``LoRABackend.bind``."""
        placement = place(self._storage.layout, signature)
        self._bound[slot] = _Bound(placement, torch.as_tensor(placement.lines(pages), device=self._storage.device))

    def plan(self, batch: Batch) -> None:
        """Gather the step's rows by adapter."""
        slot_of_row = np.repeat(batch.adapter_slots, np.diff(batch.row_starts))
        self._segments = [
            (self._bound[int(slot)], torch.as_tensor(np.flatnonzero(slot_of_row == slot), device=self._storage.device))
            for slot in np.unique(slot_of_row)
            if slot >= 0
        ]

    def run(self, layer: int, site: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See ``LoRABackend.run``."""
        for bound, rows in self._segments:
            column = 0
            for module in SITES[site]:
                index = MODULES.index(module)
                inputs, outputs = self._storage.layout.shape.module_widths(module)
                columns = slice(column, column + outputs)
                column += outputs
                rank = int(bound.placement.ranks[layer, index])
                if not rank:
                    continue
                first_a = int(bound.placement.first_a[layer, index])
                first_b = int(bound.placement.first_b[layer, index])
                a_RI = self._storage.adapter_rows(bound.lines[first_a : first_a + rank], inputs)
                b_RO = self._storage.adapter_rows(bound.lines[first_b : first_b + rank], outputs)
                y_TO[rows, columns] = add_lora(y_TO[rows, columns], x_TI[rows], a_RI, b_RO)
