"""The tensors of a folder whose linears are stored several in one, as if each were stored by itself."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

import torch

from evenflow.serving.models.stored.stored_weights import StoredWeights
from evenflow.serving.quant.grouped_matrix import GroupedMatrix


class FusedWeights:
    """StoredWeights of ``stored``. ``pieces``: by a name that is not stored, the tensor that it is a part of and its rows."""

    def __init__(self, stored: StoredWeights, pieces: Mapping[str, tuple[str, range]]) -> None:
        self._stored, self._pieces = stored, pieces
        self.is_quantised, self.description = stored.is_quantised, stored.description
        wholes = {whole for whole, _ in pieces.values()}
        shapes = {name: shape for name, shape in stored.shapes.items() if name not in wholes}
        for name, (whole, rows) in pieces.items():
            shapes[name] = (len(rows), *stored.shapes[whole][1:])
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        self._last: tuple[str, GroupedMatrix | None] = ("", None)

    def tensor(self, name: str) -> torch.Tensor:
        """See ``StoredWeights.tensor``."""
        if name not in self._pieces:
            return self._stored.tensor(name)
        return self._stored.part(*self._pieces[name])

    def part(self, name: str, rows: range, columns: range | None = None) -> torch.Tensor:
        """See ``StoredWeights.part``."""
        if name not in self._pieces:
            return self._stored.part(name, rows, columns)
        whole, own = self._pieces[name]
        return self._stored.part(whole, own[rows.start : rows.stop], columns)

    def grouped(self, name: str) -> GroupedMatrix | None:
        """See ``StoredWeights.grouped``."""
        if name not in self._pieces:
            return self._stored.grouped(name)
        whole, rows = self._pieces[name]
        if self._last[0] != whole:  # The pieces of a matrix are asked for one after another.
            self._last = whole, self._stored.grouped(whole)
        return None if self._last[1] is None else self._last[1].part(rows)

    def close(self) -> None:
        """See ``StoredWeights.close``."""
        self._stored.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


__all__ = ["FusedWeights"]
