"""The safetensors files of a model folder, one or many shards, as one mapping from name to tensor."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from evenflow.base.errors import ModelError
from evenflow.serving.quant.grouped_matrix import GroupedMatrix

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """Open ``model.safetensors`` or the shards of ``model.safetensors.index.json``; a context manager.

    Raises ModelError for a folder without safetensors, a shard that is missing, truncated or in
    disagreement with the index, and tensors that are not floating point.
    """

    def __init__(self, path: str | Path) -> None:
        self._folder = Path(path)
        self._file_of: dict[str, Any] = {}
        self._files: list[Any] = []
        self._index: dict[str, str] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of every tensor."""
        try:
            for name in self._file_names():
                self._open(name)
            self._check_index()
        except BaseException:
            self.close()
            raise

    is_quantised = False
    description = "safetensors"

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, as stored, on the CPU. Valid as long as the checkpoint is open."""
        return self._checked(name, self._file_of[name].get_tensor(name))

    def raw(self, name: str) -> torch.Tensor:
        """One tensor of any type, as stored. Raises KeyError for one that there is not."""
        value: torch.Tensor = self._file_of[name].get_tensor(name)
        return value

    def _checked(self, name: str, value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():
            raise ModelError(f"{self._folder}: {name} is {value.dtype}; supported: float32, float16, bfloat16")
        return value

    def part(self, name: str, rows: range, columns: range | None = None) -> torch.Tensor:
        """Rows, and of a matrix columns, of one tensor; only these are read from the file."""
        piece = self._file_of[name].get_slice(name)
        index = slice(rows.start, rows.stop)
        value: torch.Tensor = piece[index] if columns is None else piece[index, columns.start : columns.stop]
        return self._checked(name, value)

    def grouped(self, name: str) -> GroupedMatrix | None:
        """None: what is stored here is stored in floating point."""
        return None

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            file.__exit__(None, None, None)
        self._files.clear()
        self._file_of.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _file_names(self) -> list[str]:
        if (self._folder / _SINGLE).is_file():
            return [_SINGLE]
        index = self._folder / _INDEX
        if not index.is_file():
            others = sorted(p.name for p in self._folder.glob("*.bin"))
            hint = f" ({others[0]} is a pickle; save the model with safe_serialization)" if others else ""
            raise ModelError(f"{self._folder} holds neither {_SINGLE} nor {_INDEX}{hint}")
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            assert all(isinstance(name, str) for name in weight_map.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError):
            raise ModelError(f"{index} is not an index of shards: it has no weight_map") from None
        for name in set(weight_map.values()):
            if Path(name).name != name or not (self._folder / name).is_file():
                raise ModelError(f"{index} names the shard {name!r}, which is no file of the folder")
        self._index = weight_map
        return sorted(set(weight_map.values()))

    def _open(self, name: str) -> None:
        try:
            file = safe_open(str(self._folder / name), framework="pt", device="cpu")
            file.__enter__()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{self._folder / name} cannot be read: {error}") from None
        self._files.append(file)
        for key in file.keys():  # noqa: SIM118 - not a mapping
            if key in self._file_of:
                raise ModelError(f"{self._folder}: {key} is in more than one shard")
            self._file_of[key] = file
            self.shapes[key] = tuple(file.get_slice(key).get_shape())

    def _check_index(self) -> None:
        if self._index is None:
            return
        differ = sorted(set(self._index) ^ set(self.shapes))
        if differ:
            raise ModelError(f"{self._folder}: {_INDEX} and the shards disagree about {', '.join(differ[:8])}")


__all__ = ["Checkpoint"]
