"""The tensors of an adapter's weights file: safetensors, or a file of torch's, by what lies in the folder.

A file of torch's is a pickle. It is read by torch's weights-only loader, which makes nothing but tensors of it, and torch is
imported only for that; a server does so in the process that may die of what it reads (``bounded_reading``).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evenflow.serving.adapters.peft_format import WEIGHTS_FILE
from evenflow.serving.adapters.safetensors_arrays import FileTensors

PICKLES = ("adapter_model.bin", "pytorch_model.bin")
"""Files of torch's that are read where there is no safetensors file, the first one found."""
_MOST_TENSORS = 20_000
_FAULT_CHARACTERS = 120


class TensorSource(Protocol):
    """Named tensors, parsed and checked, not yet converted."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    """safetensors' name of each tensor's dtype."""

    def is_float(self, name: str) -> bool:
        """True for fp32, fp16 and bf16."""
        ...

    def raw(self, name: str) -> memoryview:
        """The bytes as stored, little-endian."""
        ...

    def as_float32(self, name: str) -> np.ndarray:
        """One tensor, widened to fp32 without loss. May be read-only."""
        ...


class PickledTensors:
    """``TensorSource`` of a file that torch.save wrote. Raises ValueError, saying what is wrong."""

    def __init__(self, data: bytes, name: str) -> None:
        import torch

        try:
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # whatever a stranger's pickle does to the loader
            fault = str(error).splitlines()[0][:_FAULT_CHARACTERS] if str(error) else type(error).__name__
            raise ValueError(f"{name} cannot be read by torch's weights-only loader ({fault})") from None
        if not isinstance(loaded, Mapping) or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
        ):
            raise ValueError(f"{name} holds something else than tensors by name")
        if len(loaded) > _MOST_TENSORS:
            raise ValueError(f"{name} has {len(loaded)} tensors; allowed: {_MOST_TENSORS}")
        names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
        self._tensors: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for key, value in loaded.items():
            tensor = value.detach()
            if tensor.is_sparse or tensor.is_quantized or tensor.device.type != "cpu":
                raise ValueError(f"{name} holds {key[:80]!r}, which is no dense tensor in memory")
            self._tensors[key] = tensor.contiguous()
            self.shapes[key] = tuple(tensor.shape)
            self.dtypes[key] = names.get(tensor.dtype, str(tensor.dtype))

    def is_float(self, name: str) -> bool:
        """See TensorSource."""
        return self.dtypes[name] in ("F32", "F16", "BF16")

    def raw(self, name: str) -> memoryview:
        """See TensorSource."""
        import torch

        tensor = self._tensors[name]
        return memoryview(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else memoryview(b"")

    def as_float32(self, name: str) -> np.ndarray:
        """See TensorSource."""
        array: np.ndarray = self._tensors[name].float().numpy()
        return array


def weights_file(folder: Path) -> str:
    """The name of the file that holds the folder's weights: the safetensors file unless there is only one of torch's."""
    if not (folder / WEIGHTS_FILE).exists():
        for name in PICKLES:
            if (folder / name).exists():
                return name
    return WEIGHTS_FILE


def parse_tensors(data: bytes, name: str, *, max_header_bytes: int) -> TensorSource:
    """The tensors of the file ``name`` with content ``data``. Raises ValueError, saying what is wrong."""
    if name in PICKLES:
        return PickledTensors(data, name)
    return FileTensors(data, name, max_header_bytes=max_header_bytes)


def prepare_for(name: str) -> None:
    """Import what reading the file ``name`` takes, before memory is limited: code is not what the limit is for."""
    if name in PICKLES and "torch" not in sys.modules:
        import torch  # noqa: F401


__all__ = ["PICKLES", "TensorSource", "parse_tensors", "prepare_for", "weights_file"]
