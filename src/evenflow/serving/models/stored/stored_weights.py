"""What the weights of a model folder are read through, however its files hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from evenflow.serving.models.checkpoint import Checkpoint
from evenflow.serving.models.stored.gguf_folder import POINTER
from evenflow.serving.models.stored.gguf_weights import GGUFWeights
from evenflow.serving.models.stored.quantised_checkpoint import QuantisedCheckpoint
from evenflow.serving.models.stored.quantization_config import folder_quantization
from evenflow.serving.quant.grouped_matrix import GroupedMatrix


class StoredWeights(Protocol):
    """The tensors of a model by name; a context manager. Raises ModelError for what cannot be read."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, as the model would have it unquantised."""
        ...

    @property
    def is_quantised(self) -> bool:
        """True if matrices are stored in few bits."""
        ...

    @property
    def description(self) -> str:
        """How the matrices are stored, and what of it is not kept exactly: for the log."""
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
    folder = Path(path)
    if (folder / POINTER).is_file():
        return GGUFWeights(folder)
    quantization = folder_quantization(folder)
    return Checkpoint(folder) if quantization is None else QuantisedCheckpoint(folder, quantization)


def weight_files(path: str | Path) -> list[Path]:
    """The files that decide what the weights of a folder are."""
    folder = Path(path)
    if (folder / POINTER).is_file():
        return [Path(json.loads((folder / POINTER).read_text(encoding="utf-8"))["gguf"])]
    return [file for pattern in ("*.safetensors", "*.json") for file in folder.glob(pattern)]


__all__ = ["StoredWeights", "open_weights", "weight_files"]
