"""What adapters change beside the linears of the layers: embedding, norms, outputs' scale and offset, output head.

Everything lies in the adapter's pages as side rows (``core.adapter.SideRows``), beside its factor rows, and is read there. A
step in which no token row has such an adapter pays one look at a flag per place. Plain torch operations on any device: for
norms, scales and offsets the same few whatever the number of adapters, for embeddings and heads adapter by adapter. Legend: T
token rows, L rows whose logits are wanted, H hidden, V vocabulary, O output columns, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.expert_lora import ExpertLoRA
from evenflow.serving.backends.lora.head_lora_cpu import HeadLoRA, HeadPart
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.core.adapter import AdapterSignature, SideRows
from evenflow.serving.core.shape import SITES
from evenflow.serving.memory.layout import LINE_BYTES, place

NormRule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x [N, H], weight [N, H]) to the norm of x with these weights."""


@dataclass(frozen=True, slots=True)
class _Bound:
    """The side rows of the adapter that a slot stands for."""

    signature: AdapterSignature
    lines: dict[int, np.ndarray]
    """By place in ``signature.side``: int64, the line of each row in the arena."""
    places: dict[tuple[str, int, str], tuple[int, ...]]
    """By kind, layer and module: places in ``signature.side``."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """One adapter's part of a step."""

    bound: _Bound
    token_rows: torch.Tensor
    """int64, on the device: its token rows."""
    logits_rows: torch.Tensor
    """int64, on the device: its rows among those whose logits are wanted."""

    @property
    def signature(self) -> AdapterSignature:
        """Of the adapter."""
        return self.bound.signature

    def lines_of(self, kind: str, layer: int, module: str) -> np.ndarray | None:
        """int64: the line of each of its side rows of a kind; None if it has none."""
        places = self.bound.places.get((kind, layer, module))
        return None if places is None else self.bound.lines[places[0]]


@dataclass(frozen=True, slots=True)
class _RowsOfModule:
    """Token rows whose adapters have side rows for one module or norm, and the line of each one's own."""

    token_rows: torch.Tensor
    lines: dict[str, torch.Tensor]
    """int64, by kind: gain, offset, norm."""


class SideWeights:
    """Of all bound adapters. ``vocab_size``: V of the base model."""

    def __init__(self, storage: Storage, vocab_size: int) -> None:
        self._storage = storage
        self._vocab_size = vocab_size
        self._bound: dict[int, _Bound] = {}
        self._segments: list[_Segment] = []
        self._head = HeadLoRA(storage, storage.layout.shape.hidden_size) if storage.device.type == "cpu" else None
        self.experts = ExpertLoRA(storage)
        """LoRA on mixtures of experts."""
        self._of_module: dict[tuple[int, str], list[_RowsOfModule]] = {}
        self._planned: tuple[bytes, bytes, bytes] | None = None
        """Slots, row starts and logits rows of the batch that all this was made for; None once a bind has made it invalid."""

    @property
    def is_active(self) -> bool:
        """True if some token row of the step has an adapter with side rows."""
        return bool(self._segments)

    def has(self, slot: int) -> bool:
        """True if ``slot`` stands for an adapter with side rows."""
        return slot in self._bound

    def bind(self, slot: int, signature: AdapterSignature, pages: Sequence[int]) -> None:
        """From now on ``slot`` stands for the adapter whose rows lie in ``pages``."""
        self._bound.pop(slot, None)
        self._planned = None
        if not signature.side and not signature.vocab_size:
            return
        placement = place(self._storage.layout, signature)
        lines = placement.lines(pages)
        places: dict[tuple[str, int, str], tuple[int, ...]] = {}
        for index, rows in enumerate(signature.side):
            key = rows.kind, rows.layer, rows.module
            places[key] = (*places.get(key, ()), index)
        of_rows = {index: lines[placement.side_slice(index)] for index in range(len(signature.side))}
        self._bound[slot] = _Bound(signature, of_rows, places)

    def plan(self, batch: Batch) -> None:
        """Gather the step's token rows by adapter, and by module what is the same work for all adapters."""
        planned = batch.adapter_slots.tobytes(), batch.row_starts.tobytes(), batch.logits_row_numbers.tobytes()
        if planned == self._planned:
            return
        self._planned, self._segments, self._of_module = planned, [], {}
        self.experts.plan((), 0)
        if self._head is not None:
            self._head.plan(())
        if not self._bound:
            return
        slots = [int(slot) for slot in np.unique(batch.adapter_slots) if int(slot) in self._bound]
        if not slots:
            return
        slot_of_row = np.repeat(batch.adapter_slots, np.diff(batch.row_starts))
        slot_of_logits = slot_of_row[batch.logits_row_numbers]
        device = self._storage.device
        for slot in slots:
            rows, logits = (torch.as_tensor(np.flatnonzero(of == slot), device=device) for of in (slot_of_row, slot_of_logits))
            self._segments.append(_Segment(self._bound[slot], rows, logits))
        self._gather_modules()
        self.experts.plan(self._segments, len(slot_of_row))
        if self._head is not None:
            self._head.plan([part for segment in self._segments for part in _head_parts(segment)])

    def _gather_modules(self) -> None:
        """Side rows of modules and norms, of all adapters together; those with different kinds of them apart."""
        found: dict[tuple[int, str], dict[tuple[str, ...], list[tuple[torch.Tensor, list[int]]]]] = {}
        for segment in self._segments:
            bound = segment.bound
            lines_of: dict[tuple[int, str], dict[str, int]] = {}
            for (kind, layer, module), places in bound.places.items():
                if kind in ("gain", "offset", "norm") and module != "lm_head":
                    lines_of.setdefault((layer, module), {})[kind] = int(bound.lines[places[0]][0])
            for (layer, module), lines in lines_of.items():
                rows = segment.logits_rows if layer < 0 else segment.token_rows
                same_kinds = found.setdefault((layer, module), {}).setdefault(tuple(lines), [])
                same_kinds.append((rows, list(lines.values())))
        device = self._storage.device
        for key, by_kinds in found.items():
            self._of_module[key] = []
            for kinds, parts in by_kinds.items():
                counts = torch.tensor([len(rows) for rows, _ in parts])
                gathered = {
                    kind: torch.tensor([values[i] for _, values in parts]).repeat_interleave(counts).to(device)
                    for i, kind in enumerate(kinds)
                }
                self._of_module[key].append(_RowsOfModule(torch.cat([rows for rows, _ in parts]), gathered))

    def base_ids(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """Token ids that the base model's embedding can look up: those that only an adapter knows become the last one."""
        return token_ids_T.clamp(max=self._vocab_size - 1) if self._segments else token_ids_T

    def embed(self, token_ids_T: torch.Tensor, hidden_TH: torch.Tensor) -> None:
        """Give the token rows of each adapter what its own embedding says, in place."""
        for segment in self._segments:
            ids_N = token_ids_T[segment.token_rows]
            for index, rows in self._side(segment, "embedding"):
                at_N, is_own_N = _find(ids_N, rows, self._storage.device)
                own_MH = self._gather(segment, index, at_N[is_own_N])
                hidden_TH[segment.token_rows[is_own_N]] = own_MH
            for (index_a, rows_a), (index_b, _) in zip(self._side(segment, "embed_a"), self._side(segment, "embed_b")):
                at_N, is_own_N = _find(ids_N, rows_a, self._storage.device)
                a_MR = self._gather(segment, index_a, at_N[is_own_N])
                b_RH = self._matrix(segment, index_b)
                where = segment.token_rows[is_own_N]
                hidden_TH[where] = (hidden_TH[where].float() + a_MR.float() @ b_RH.float()).to(hidden_TH.dtype)

    def adjust(self, layer: int, site: str, y_TO: torch.Tensor) -> None:
        """y_TO[t] += gain * y_TO[t] + offset of the adapter of t, in place, for the modules of a site; before LoRA is added."""
        column = 0
        for module in SITES[site]:
            width = self._storage.layout.row_width_of_output(module)
            for own in self._of_module.get((layer, module), ()):
                part_NO = y_TO[own.token_rows, column : column + width].float()
                if "gain" in own.lines:
                    part_NO.addcmul_(part_NO, self._storage.factor_rows(own.lines["gain"], width).float())
                if "offset" in own.lines:
                    part_NO += self._storage.factor_rows(own.lines["offset"], width)
                y_TO[own.token_rows, column : column + width] = part_NO.to(y_TO.dtype)
            column += width

    def norm(self, layer: int, module: str, rule: NormRule, x_TH: torch.Tensor, out_TH: torch.Tensor) -> None:
        """Overwrite ``out_TH`` where an adapter has a weight of its own for this norm of ``x_TH``.

        ``layer`` -1 is the norm before the head, whose rows are those whose logits are wanted.
        """
        for own in self._of_module.get((layer, module), ()):
            if len(own.token_rows):
                weight_NH = self._storage.factor_rows(own.lines["norm"], x_TH.shape[1])
                out_TH[own.token_rows] = rule(x_TH[own.token_rows], weight_NH)

    def logits(self, hidden_LH: torch.Tensor, logits_LV: torch.Tensor) -> torch.Tensor:
        """The logits with every adapter's own head; wider than ``logits_LV`` if an adapter knows more tokens.

        Tokens that an adapter, or the base model, does not know have logits of minus infinity.
        """
        size = max([logits_LV.shape[1], *(segment.bound.signature.vocab_size for segment in self._segments)])
        if size > logits_LV.shape[1]:
            more = logits_LV.new_full((len(logits_LV), size - logits_LV.shape[1]), float("-inf"))
            logits_LV = torch.cat([logits_LV, more], dim=1)
        for segment in self._segments:
            if not len(segment.logits_rows):
                continue
            self._own_logits(segment, hidden_LH, logits_LV)
        if self._head is not None:
            self._head.add(hidden_LH, logits_LV)
        for segment in self._segments:
            own_size = segment.bound.signature.vocab_size or self._vocab_size
            if own_size < logits_LV.shape[1]:
                logits_LV[segment.logits_rows, own_size:] = float("-inf")
        return logits_LV

    def _own_logits(self, segment: _Segment, hidden_LH: torch.Tensor, logits_LV: torch.Tensor) -> None:
        places, hidden_NH = segment.logits_rows, hidden_LH[segment.logits_rows]
        for index, rows in self._side(segment, "head"):
            first = 0
            for matrix_MH in self._runs(segment, index):
                part_NM = hidden_NH @ matrix_MH.T
                last = first + len(matrix_MH)
                if rows.token_ids:
                    ids_M = torch.as_tensor(rows.token_ids[first:last], device=hidden_LH.device)
                    logits_LV[places[:, None], ids_M] = part_NM
                else:
                    logits_LV[places, first:last] = part_NM
                first = last
        heads_a = self._side(segment, "head_a")
        if not heads_a:
            return
        has_kernel = self._head is not None
        if has_kernel and not self._side(segment, "gain", -1, "lm_head") and not self._side(segment, "offset", -1, "lm_head"):
            return
        s_NR = hidden_NH @ self._matrix(segment, heads_a[0][0]).T
        for index, rows in self._side(segment, "head_b", -1, ""):
            columns = slice(rows.first_column, rows.first_column + rows.width)
            part_NO = logits_LV[places, columns]
            for kind in ("gain", "offset"):
                for other, of_head in self._side(segment, kind, -1, "lm_head"):
                    if of_head.first_column == rows.first_column:
                        row_O = self._matrix(segment, other)[0].float()
                        change = part_NO.float() * row_O if kind == "gain" else row_O
                        part_NO = (part_NO.float() + change).to(part_NO.dtype)
            logits_LV[places, columns] = part_NO if has_kernel else part_NO.addmm_(s_NR, self._matrix(segment, index))

    def _side(self, segment: _Segment, kind: str, layer: int = -1, module: str = "") -> list[tuple[int, SideRows]]:
        bound = segment.bound
        return [(index, bound.signature.side[index]) for index in bound.places.get((kind, layer, module), ())]

    def _gather(self, segment: _Segment, index: int, numbers: torch.Tensor) -> torch.Tensor:
        """Copies of these rows of one group: [len(numbers), width]."""
        lines = torch.as_tensor(segment.bound.lines[index], device=numbers.device)[numbers]
        return self._storage.factor_rows(lines, self._width(segment, index))

    def _matrix(self, segment: _Segment, index: int) -> torch.Tensor:
        """All rows of one group: a view where they follow one another, else a copy."""
        parts = list(self._runs(segment, index))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _runs(self, segment: _Segment, index: int) -> Iterator[torch.Tensor]:
        """The rows of one group as views of the arena, one for each run of rows that follow one another."""
        layout, elements = self._storage.layout, self._storage.elements
        lines, width = segment.bound.lines[index], self._width(segment, index)
        apart, per_line = layout.row_bytes(width) // LINE_BYTES, LINE_BYTES // layout.itemsize
        starts = np.flatnonzero(np.diff(lines, prepend=-apart - 1) != apart)
        for first, last in zip(starts, [*starts[1:], len(lines)]):
            start = elements.storage_offset() + int(lines[first]) * per_line
            yield elements.as_strided((int(last - first), width), (apart * per_line, 1), start)

    def _width(self, segment: _Segment, index: int) -> int:
        return self._storage.layout.side_width(segment.bound.signature.side[index])


class SidedLoRA:
    """A LoRABackend with ``side`` weights beside it: the two halves of what an adapter is."""

    def __init__(self, backend: LoRABackend, side: SideWeights) -> None:
        self._backend = backend
        self.side = side

    def warm_up(self) -> None:
        """See ``LoRABackend``."""
        self._backend.warm_up()

    def bind(self, slot: int, signature: AdapterSignature, pages: Sequence[int]) -> None:
        """See ``LoRABackend``."""
        self._backend.bind(slot, signature, pages)
        self.side.bind(slot, signature, pages)

    def plan(self, batch: Batch) -> None:
        """See ``LoRABackend``."""
        self._backend.plan(batch)
        self.side.plan(batch)

    def run(self, layer: int, site: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See ``LoRABackend``."""
        if self.side.is_active:
            self.side.adjust(layer, site, y_TO)
        self._backend.run(layer, site, x_TI, y_TO)


def _head_parts(segment: _Segment) -> Iterator[HeadPart]:
    """LoRA of the head of one adapter, range by range."""
    bound = segment.bound
    for place_a in bound.places.get(("head_a", -1, ""), ()):
        for place_b in bound.places.get(("head_b", -1, ""), ()):
            rows = bound.signature.side[place_b]
            lines = np.concatenate([bound.lines[place_a], bound.lines[place_b]])
            if len(segment.logits_rows):
                yield HeadPart(rows.first_column, rows.width, lines, segment.logits_rows.numpy())


def _find(ids_N: torch.Tensor, rows: SideRows, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(number of the row of each token id, whether there is one): int64 [N] and bool [N]."""
    if not rows.token_ids:
        return ids_N, ids_N < rows.count
    listed = torch.as_tensor(rows.token_ids, device=device)
    at_N = torch.searchsorted(listed, ids_N).clamp(max=len(listed) - 1)
    return at_N, listed[at_N] == ids_N


__all__ = ["NormRule", "SideWeights", "SidedLoRA"]
