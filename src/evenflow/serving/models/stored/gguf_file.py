"""A GGUF file: its metadata and where its tensors lie, through the ``gguf`` package. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evenflow.base.errors import ConfigError, ModelError

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K")
"""The types of tensors that are read."""
_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor as the file has it."""

    type: str
    shape: tuple[int, ...]
    """As torch would have it: the width of a row last."""
    data: np.ndarray
    """Rows of bytes, of float32 or of float16; a view of the mapped file."""


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """What a GGUF file holds."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    def value(self, name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """One entry of the metadata. Raises ModelError if it is missing without a default, or of another kind."""
        found = self.metadata.get(name, default)
        if found is ...:
            raise ModelError(f"{self.path}: the metadata has no {name}")
        if found is not default and not isinstance(found, kind):
            raise ModelError(f"{self.path}: {name} is {str(found)[:60]!r}, which is of the wrong kind")
        return found


def is_gguf(path: Path) -> bool:
    """True for a file whose name or first bytes say GGUF."""
    if not path.is_file():
        return False
    if path.suffix == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def read_gguf(path: Path) -> GGUFFile:
    """Open a GGUF file. Raises ModelError, naming what is wrong, and ConfigError if the ``gguf`` package is missing."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ConfigError(
            "a GGUF file is read with the gguf package, which is not installed: pip install 'evenflow[gguf]'"
        ) from None
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise ModelError(f"{path} is no GGUF file: it does not begin with GGUF")
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: _tensor(path, tensor) for tensor in reader.tensors}
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # what the package raises for damaged files is of many kinds
        raise ModelError(
            f"{path} cannot be read as GGUF, it may have been cut short: {type(error).__name__}: {error}"
        ) from None
    if "split.count" in metadata and int(metadata["split.count"]) > 1:
        raise ModelError(f"{path} is one of {metadata['split.count']} parts; join them: llama-gguf-split --merge")
    return GGUFFile(path, metadata, tensors)


def _tensor(path: Path, tensor: Any) -> GGUFTensor:
    name = tensor.tensor_type.name
    if name not in TYPES:
        raise ModelError(f"{path}: {tensor.name} is of the type {name}; supported: {', '.join(TYPES)}")
    return GGUFTensor(name, tuple(int(n) for n in reversed(tensor.shape.tolist())), tensor.data)


__all__ = ["TYPES", "GGUFFile", "GGUFTensor", "is_gguf", "read_gguf"]
