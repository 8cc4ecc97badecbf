"""LoRA through plain torch operations, adapter by adapter: on any device, but slowly. Other backends are tested against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.rank_space import RankSpace
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.shape import MODULES, SITES
from evenflow.serving.kernels.lora_torch import add_lora
from evenflow.serving.memory.layout import AdapterPlacement, Part, place


@dataclass(frozen=True, slots=True)
class _Bound:
    """The adapter that a slot stands for now."""

    placement: AdapterPlacement
    lines: torch.Tensor
    """int64 [R], on the device: line of each factor row in the arena."""


class TorchLoRA:
    """SplitLoRABackend for any device and dtype. Legend: see ``LoRABackend``."""

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
        """Gather the step's token rows by adapter."""
        slot_of_token_row = np.repeat(batch.adapter_slots, np.diff(batch.row_starts))
        self._segments = [
            (self._bound[int(slot)], torch.as_tensor(np.flatnonzero(slot_of_token_row == slot), device=self._storage.device))
            for slot in np.unique(slot_of_token_row)
            if slot >= 0
        ]

    def run(self, layer: int, site: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See ``LoRABackend.run``."""
        for bound, token_rows in self._segments:
            column = 0
            for module in SITES[site]:
                index = MODULES.index(module)
                columns = slice(column, column + self._storage.layout.row_width(module, "B"))
                column = columns.stop
                if bound.placement.lora_ranks[layer, index]:
                    a_RI, b_RO = self._factor_rows(bound, layer, module, "A"), self._factor_rows(bound, layer, module, "B")
                    y_TO[token_rows, columns] = add_lora(y_TO[token_rows, columns], x_TI[token_rows], a_RI, b_RO)

    def shrink(self, layer: int, site: str, x_TI: torch.Tensor, space: RankSpace) -> torch.Tensor:
        """See ``SplitLoRABackend.shrink``."""
        message_M = torch.zeros(space.size(layer), dtype=torch.float32, device=x_TI.device)
        for bound, token_rows in self._segments:
            for module, at in self._fields(layer, bound, token_rows, space):
                a_RI = self._factor_rows(bound, layer, module, "A")
                if len(a_RI):
                    where = at[:, None] + torch.arange(len(a_RI), device=at.device)
                    message_M[where] = x_TI[token_rows].float() @ a_RI.float().T
        return message_M

    def expand(self, layer: int, site: str, parts_PM: torch.Tensor, y_TO: torch.Tensor, space: RankSpace) -> None:
        """See ``SplitLoRABackend.expand``."""
        for bound, token_rows in self._segments:
            for module, at in self._fields(layer, bound, token_rows, space):
                b_RO = self._factor_rows(bound, layer, module, "B")
                column = sum(self._storage.layout.row_width(m, "B") for m in SITES[site][: SITES[site].index(module)])
                columns = slice(column, column + b_RO.shape[1])
                field = -(-len(b_RO) // space.num_parts)
                where = at[:, None] + torch.arange(field, device=at.device)
                s_TR = parts_PM[:, where].transpose(0, 1).reshape(len(token_rows), -1)[:, : len(b_RO)]
                y_TO[token_rows, columns] = (y_TO[token_rows, columns].float() + s_TR @ b_RO.float()).to(y_TO.dtype)

    def _fields(
        self, layer: int, bound: _Bound, token_rows: torch.Tensor, space: RankSpace
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """For each module of the site that the adapter has: (module, int64: first float of each token row's field)."""
        slot = int(space.slot_of_token_row[int(token_rows[0])])
        at = torch.as_tensor(space.offsets[layer], device=token_rows.device)[token_rows]
        for index, field in zip(space.modules, space.fields[slot, layer]):
            if bound.placement.lora_ranks[layer, index]:
                yield MODULES[index], at
            at = at + int(field)

    def _factor_rows(self, bound: _Bound, layer: int, module: str, part: Part) -> torch.Tensor:
        """A copy of a module's factor rows, of A or of B, as far as this arena holds them: [factor rows, width]."""
        index, placement = MODULES.index(module), bound.placement
        starts, counts = (placement.first_a, placement.a_rows) if part == "A" else (placement.first_b, placement.lora_ranks)
        first = int(starts[layer, index])
        lines = bound.lines[first : first + int(counts[layer, index])]
        return self._storage.factor_rows(lines, placement.row_width(module, part))
