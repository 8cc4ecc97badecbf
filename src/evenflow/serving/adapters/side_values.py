"""What an adapter's side rows hold: worked out from its tensors and, where they are relative to it, the base model's weights.

DoRA (Liu et al. 2024, section 4.3) scales column o of W + s B A to the magnitude m[o]. So y = g (W x) + g s B A x + bias with
g = m / |W + s B A|: g is folded into B, and g - 1 of the base model's output, without its bias, is added. numpy only.
Legend: R rank, I input width, O output width, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.peft_parts import LinearPart, Parts, summarised
from evenflow.serving.adapters.tensor_names import EMBEDDING, HEAD
from evenflow.serving.adapters.tensor_source import TensorSource
from evenflow.serving.core.adapter import SideRows
from evenflow.serving.core.shape import ModelShape

_ROWS_AT_ONCE = 4096
_MOST_LISTED = 4096
"""Own rows of a table up to which they are listed one by one; a table with more of them is kept whole."""

SideValues = list[tuple[SideRows, Callable[[], np.ndarray]]]
"""Side rows, and what makes what they hold: fp32 [count, width]."""


class SideReading:
    """Reads the side rows of one adapter; faults go to ``reasons``. ``base``: None if the base weights cannot be had.

    ``max_columns``: of a row of the head's B, which must fit into a page.
    """

    def __init__(
        self,
        tensors: TensorSource,
        parts: Parts,
        shape: ModelShape,
        base: BaseWeights | None,
        max_columns: int,
        reasons: list[str],
    ) -> None:
        self._tensors, self._parts, self._shape, self._base, self._reasons = tensors, parts, shape, base, reasons
        self._max_columns = max_columns
        self._gains: dict[str, np.ndarray | None] = {}

    def gain(self, part: LinearPart) -> np.ndarray | None:
        """fp32 [O]: what DoRA multiplies the outputs with that belong to ``part``; None if it has no magnitude."""
        if part.magnitude is None:
            return None
        if part.path not in self._gains:
            self._gains[part.path] = self._gain_of(part)
        gain = self._gains[part.path]
        return None if gain is None else gain[part.outputs]

    def values(self) -> SideValues:
        """All side rows, in the order in which a step needs them."""
        mixture = self._parts.mixture.side_rows(self._tensors, self._shape.experts.num_experts if self._shape.experts else 0)
        own = [*self._embedding_lora(), *self._tables(), *self._of_linears(), *self._norms()]
        return [*own, *mixture, *self._head_lora()]

    def _gain_of(self, part: LinearPart) -> np.ndarray | None:
        assert part.magnitude is not None
        own = self._parts.tables.get(part.path)
        weight_OI = self._tensors.as_float32(own) if own else None if self._base is None else self._base.weight(part.path)
        if weight_OI is None:
            self._reasons.append(
                f"{part.path} has DoRA, for which the base weight in fp32, fp16 or bf16 is needed; it is not there"
            )
            return None
        a_RI, b_OR = self._tensors.as_float32(part.a), self._tensors.as_float32(part.b)
        magnitude_O = self._tensors.as_float32(part.magnitude)
        if weight_OI.shape != (len(b_OR), a_RI.shape[1]):
            self._reasons.append(f"{part.path} has DoRA, but its base weight is {list(weight_OI.shape)}")
            return None
        norms = []
        for first in range(0, len(b_OR), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            changed = weight_OI[rows] + np.float32(part.scale) * (b_OR[rows] @ a_RI)
            norms.append(np.linalg.norm(changed, axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            gain_O = (magnitude_O / np.concatenate(norms)).astype(np.float32)
        if not np.isfinite(gain_O).all():
            self._reasons.append(f"{part.path} has DoRA, but a row of the weight with LoRA added is zero")
            return None
        return gain_O

    def _of_linears(self) -> SideValues:
        values: SideValues = []
        for (layer, module), part in sorted(self._parts.linears.items()):
            gain_O = self.gain(part)
            offset_O = self._offset(part, gain_O)
            for kind, row in (("gain", None if gain_O is None else gain_O - 1), ("offset", offset_O)):
                if row is not None:
                    values.append((SideRows(kind, 1, len(row), layer, module), _held(row[None])))
        return values

    def _offset(self, part: LinearPart, gain_O: np.ndarray | None) -> np.ndarray | None:
        """What is added to the scaled output: the bias of B, and what scaling took from or gave to the base model's bias."""
        offset = None
        if part.bias is not None:
            offset = self._tensors.as_float32(part.bias)[part.outputs] * np.float32(part.scale)
            if gain_O is not None:
                offset = offset * gain_O
        if gain_O is not None and self._base is not None:
            bias = self._base.bias(part.path)
            if bias is not None:
                corrected = (1 - gain_O) * bias[part.outputs]
                offset = corrected if offset is None else offset + corrected
        return offset

    def _norms(self) -> SideValues:
        if self._base is not None:
            missing = [of for of in sorted(self._parts.norms) if of[0] >= 0 and not self._base.has_norm(*of)]
            self._reasons += summarised(
                "has a weight here, but the base model has no such norm",
                (f"{name} of layer {layer}" for layer, name in missing),
            )
        return [
            (SideRows("norm", 1, self._shape.hidden_size, layer, module), _held(self._tensors.as_float32(name)[None]))
            for (layer, module), name in sorted(self._parts.norms.items())
        ]

    def _embedding_lora(self) -> SideValues:
        if self._parts.embedding is None:
            return []
        a, b, scale = self._parts.embedding
        a_VR = np.ascontiguousarray(self._tensors.as_float32(a).T)
        b_RH = self._tensors.as_float32(b).T * np.float32(scale)
        return [(SideRows("embed_a", *a_VR.shape), _held(a_VR)), (SideRows("embed_b", *b_RH.shape), _held(b_RH))]

    def _head_lora(self) -> Iterator[tuple[SideRows, Callable[[], np.ndarray]]]:
        part = self._parts.head
        if part is None:
            return
        gain_V = self.gain(part)
        a_RH = self._tensors.as_float32(part.a)
        b_RV = self._tensors.as_float32(part.b).T * np.float32(part.scale)
        if gain_V is not None:
            b_RV = b_RV * gain_V
        offset_V = self._offset(part, gain_V)
        yield SideRows("head_a", *a_RH.shape), _held(a_RH)
        for first in range(0, b_RV.shape[1], self._max_columns):
            columns = slice(first, first + self._max_columns)
            for kind, row in (("gain", None if gain_V is None else gain_V - 1), ("offset", offset_V)):
                if row is not None:
                    yield SideRows(kind, 1, len(row[columns]), -1, "lm_head", first), _held(row[None, columns])
            piece = b_RV[:, columns]
            yield SideRows("head_b", len(piece), piece.shape[1], first_column=first), _held(piece)

    def _tables(self) -> SideValues:
        values: SideValues = []
        for path, kind in ((EMBEDDING, "embedding"), (HEAD, "head")):
            if path in self._parts.tables:
                rows = self._own_rows(path, kind)
                if rows is not None:
                    values.append(rows)
            if path in self._parts.tokens:
                name, token_ids = self._parts.tokens[path]
                order = np.argsort(token_ids)
                listed = tuple(token_ids[i] for i in order)
                rows_NH = self._tensors.as_float32(name)[order]
                values.append((SideRows(kind, len(rows_NH), rows_NH.shape[1], token_ids=listed), _held(rows_NH)))
        return values

    def _own_rows(self, path: str, kind: str) -> tuple[SideRows, Callable[[], np.ndarray]] | None:
        """The rows of a table that differ from the base model's; None if none does."""
        name = self._parts.tables[path]
        own_VH = self._tensors.as_float32(name)
        base_VH = None if self._base is None else self._base.weight(path)
        if base_VH is not None and base_VH.shape[1] == own_VH.shape[1]:
            differs = np.ones(len(own_VH), bool)
            for first in range(0, min(len(own_VH), len(base_VH)), _ROWS_AT_ONCE):
                own, base = own_VH[first : first + _ROWS_AT_ONCE], base_VH[first : first + _ROWS_AT_ONCE]
                both = min(len(own), len(base))
                differs[first : first + both] = (own[:both] != base[:both]).any(axis=1)
            token_ids = np.flatnonzero(differs)
            if len(token_ids) <= min(_MOST_LISTED, len(own_VH) // 2):
                listed = tuple(int(i) for i in token_ids)
                rows = SideRows(kind, len(listed), own_VH.shape[1], token_ids=listed)
                return (rows, _held(own_VH[token_ids])) if listed else None
        return SideRows(kind, *own_VH.shape), lambda: self._tensors.as_float32(name)

    @property
    def vocab_size(self) -> int:
        """Tokens that the adapter knows if its tables say so; 0: the base model's vocabulary."""
        sizes = [self._tensors.shapes[name][0] for name in self._parts.tables.values()]
        if self._parts.embedding is not None:
            sizes.append(self._tensors.shapes[self._parts.embedding[0]][1])
        if self._parts.head is not None:
            sizes.append(self._tensors.shapes[self._parts.head.b][0])
        if len(set(sizes)) > 1:
            self._reasons.append(f"the tables of the adapter have {sorted(set(sizes))} tokens; they must have equally many")
        size = max(sizes, default=0)
        listed = max((max(ids) + 1 for _, ids in self._parts.tokens.values()), default=0)
        if listed > max(size, self._shape.vocab_size):
            self._reasons.append(f"trainable_token_indices holds token {listed - 1}, which is in no table")
        return 0 if size == self._shape.vocab_size else size


def _held(rows: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: rows


__all__ = ["SideReading", "SideValues"]
