"""What the weights of a model folder are read through, however its files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from evenflow.serving.models.checkpoint import Checkpoint
from evenflow.serving.quant.grouped_matrix import GroupedMatrix


class StoredWeights(Protocol):
    """The tensors of a model by name; a context manager. Raises ModelError for what cannot be read."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, as the model would have it unquantised."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, in floating point, on the CPU. Valid as long as this is open."""
        ...

    def part(self, name: str, rows: range, columns: range | None = None) -> torch.Tensor:
        """Rows, and of a matrix columns, of one tensor, in floating point."""
        ...

    def grouped(self, name: str) -> GroupedMatrix | None:
        """The matrix ``name`` in few bits, exactly as stored; None if it is stored otherwise."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_weights(path: str | Path) -> StoredWeights:
    """The weights of a folder. Raises ModelError for files that cannot be read."""
    return Checkpoint(path)


def weight_files(path: str | Path) -> list[Path]:
    """The files that decide what the weights of a folder are."""
    folder = Path(path)
    return [file for pattern in ("*.safetensors", "*.json") for file in folder.glob(pattern)]


__all__ = ["StoredWeights", "open_weights", "weight_files"]
