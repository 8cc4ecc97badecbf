"""LoRA on mixtures of experts, from side rows in the arena: on routers, and on each pair of a token row and an expert.

Pairs that few others share an adapter and an expert with, as in decoding, copy their factor rows together and multiply them
in one batch; pairs that many share them with, as in prefill, multiply group by group. Plain torch operations on any device.
Legend: T token rows, N pairs, M adapters, E experts, R LoRA rank, I input width, O output width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.core.adapter import AdapterSignature

_PAIRS_PER_GROUP = 4
"""From so many pairs of one adapter and expert on, on average, a product of their own is worth its start."""
_MOST_COPIED = 1 << 24
"""Elements of factor rows that are copied at a time."""
SITES_OF_EXPERTS: Mapping[str, tuple[str, ...]] = {"gate_up": ("gate", "up"), "down": ("down",)}


class SideSegment(Protocol):
    """One adapter's part of a step."""

    @property
    def signature(self) -> AdapterSignature: ...

    @property
    def token_rows(self) -> torch.Tensor:
        """int64, on the device: its token rows."""
        ...

    def lines_of(self, kind: str, layer: int, module: str) -> np.ndarray | None:
        """int64: the line of each of its side rows of a kind; None if it has none."""
        ...


@dataclass(frozen=True, slots=True)
class _Adapters:
    """Adapters of one LoRA rank at a linear of a layer's experts."""

    member_T: torch.Tensor
    """int64: which of the M adapters a token row has; -1: none."""
    a_lines_MER: torch.Tensor
    b_lines_MER: torch.Tensor
    """int64: lines of their rows in the arena."""
    lora_rank: int


class ExpertLoRA:
    """Of the adapters of a step. ``plan`` comes before all else."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._segments: list[SideSegment] = []
        self._num_rows = 0
        self._adapters: dict[tuple[int, str], list[_Adapters]] = {}

    @property
    def is_active(self) -> bool:
        """True if some token row has an adapter with LoRA on a mixture."""
        return bool(self._segments)

    def plan(self, segments: Sequence[SideSegment], num_rows: int) -> None:
        """The step's adapters, of ``num_rows`` token rows."""
        self._segments = [
            segment for segment in segments if any(rows.kind in ("small_a", "expert_a") for rows in segment.signature.side)
        ]
        self._num_rows, self._adapters = num_rows, {}

    def add_small(self, layer: int, module: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """y_TO[t] += B A x_TI[t] of the adapter of t, in place, for a router or a shared expert's gate."""
        for segment in self._segments:
            a_lines, b_lines = (segment.lines_of(kind, layer, module) for kind in ("small_a", "small_b"))
            if a_lines is None or b_lines is None:
                continue
            rows = segment.token_rows
            a_RI = self._storage.factor_rows(self._on_device(a_lines), x_TI.shape[1])
            b_RO = self._storage.factor_rows(self._on_device(b_lines), y_TO.shape[1])
            change_NO = (x_TI[rows].float() @ a_RI.float().T) @ b_RO.float()
            y_TO[rows] = (y_TO[rows].float() + change_NO).to(y_TO.dtype)

    def add(
        self, layer: int, site: str, rows_N: torch.Tensor, experts_N: torch.Tensor, x_NI: torch.Tensor, y_NO: torch.Tensor
    ) -> None:
        """y_NO[n] += B_e A_e x_NI[n] of the adapter of token row rows_N[n] and the expert e = experts_N[n], in place.

        ``site``: gate_up or down; its linears' outputs follow one another in ``y_NO``.
        """
        modules = SITES_OF_EXPERTS[site]
        width = y_NO.shape[1] // len(modules)
        for place, module in enumerate(modules):
            for adapters in self._of(layer, module):
                member_N = adapters.member_T[rows_N]
                pairs = (member_N >= 0).nonzero()[:, 0]
                if len(pairs):
                    y_NW = y_NO[:, place * width : (place + 1) * width]
                    self._add(adapters, pairs, member_N[pairs], experts_N[pairs], x_NI, y_NW)

    def _add(
        self,
        adapters: _Adapters,
        pairs: torch.Tensor,
        member_P: torch.Tensor,
        experts_P: torch.Tensor,
        x_NI: torch.Tensor,
        y_NO: torch.Tensor,
    ) -> None:
        num_experts = adapters.a_lines_MER.shape[1]
        keys_P = member_P * num_experts + experts_P
        groups, group_P = keys_P.unique(return_inverse=True)
        if len(pairs) >= _PAIRS_PER_GROUP * len(groups):
            sorted_P = group_P.argsort(stable=True)
            counts = torch.bincount(group_P, minlength=len(groups)).tolist()
            for key, some in zip(groups.tolist(), sorted_P.split(counts)):
                of = pairs[some]
                a_RI = self._rows(adapters.a_lines_MER[key // num_experts, key % num_experts], x_NI.shape[1])
                b_RO = self._rows(adapters.b_lines_MER[key // num_experts, key % num_experts], y_NO.shape[1])
                y_NO[of] += (x_NI[of] @ a_RI.T) @ b_RO
            return
        step = max(1, _MOST_COPIED // (adapters.lora_rank * max(x_NI.shape[1], y_NO.shape[1])))
        for first in range(0, len(pairs), step):
            some = slice(first, first + step)
            of, member, expert = pairs[some], member_P[some], experts_P[some]
            a_PRI = self._rows(adapters.a_lines_MER[member, expert], x_NI.shape[1])
            b_PRO = self._rows(adapters.b_lines_MER[member, expert], y_NO.shape[1])
            s_P1R = torch.bmm(a_PRI, x_NI[of][:, :, None]).transpose(1, 2)
            y_NO[of] += torch.bmm(s_P1R, b_PRO)[:, 0]

    def _rows(self, lines: torch.Tensor, width: int) -> torch.Tensor:
        return self._storage.factor_rows(lines.flatten(), width).view(*lines.shape, width)

    def _of(self, layer: int, module: str) -> list[_Adapters]:
        if (layer, module) not in self._adapters:
            self._adapters[layer, module] = self._gather(layer, module)
        return self._adapters[layer, module]

    def _gather(self, layer: int, module: str) -> list[_Adapters]:
        found: dict[int, list[tuple[torch.Tensor, np.ndarray, np.ndarray]]] = {}
        num_experts = self._storage.layout.shape.experts.num_experts if self._storage.layout.shape.experts else 1
        for segment in self._segments:
            b_lines, a_lines = segment.lines_of("expert_b", layer, module), segment.lines_of("expert_a", layer, module)
            if a_lines is None and module != "down":
                a_lines = segment.lines_of("expert_a", layer, "gate_up")
            if a_lines is not None and b_lines is not None:
                a_ER, b_ER = a_lines.reshape(num_experts, -1), b_lines.reshape(num_experts, -1)
                found.setdefault(a_ER.shape[1], []).append((segment.token_rows, a_ER, b_ER))
        gathered = []
        for lora_rank, members in found.items():
            member_T = torch.full((self._num_rows,), -1, device=self._storage.device)
            for number, (rows, _, _) in enumerate(members):
                member_T[rows] = number
            a_MER, b_MER = (self._on_device(np.stack([member[part] for member in members])) for part in (1, 2))
            gathered.append(_Adapters(member_T, a_MER, b_MER, lora_rank))
        return gathered

    def _on_device(self, lines: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(lines, device=self._storage.device)


__all__ = ["SITES_OF_EXPERTS", "ExpertLoRA", "SideSegment"]
