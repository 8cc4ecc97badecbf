"""Tensors of a safetensors file as numpy arrays, without torch. numpy has no bf16: it is widened bit by bit.

Runs on the loader thread beside the step loop: torch would start a second pool of threads there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

_FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class FileTensors:
    """All tensors of one file, parsed and checked, not yet converted.

    Raises ValueError, saying what is wrong, for a file that is truncated or no safetensors file; OSError
    where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        try:
            entries = deserialize(data)
        except SafetensorError as error:
            raise ValueError(f"{path.name} is truncated or no safetensors file ({error})") from None
        self._raw: dict[str, bytes] = {}
        self.dtypes: dict[str, str] = {}
        """safetensors' name of each tensor's dtype: F32, F16, BF16, I64, ..."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, entry in entries:
            self._raw[name] = entry["data"]
            self.dtypes[name] = str(entry["dtype"])
            self.shapes[name] = tuple(entry["shape"])

    def is_float(self, name: str) -> bool:
        """True for fp32, fp16 and bf16."""
        return self.dtypes[name] in _FLOATS

    def raw(self, name: str) -> bytes:
        """The bytes as stored, little-endian."""
        return self._raw[name]

    def as_float32(self, name: str) -> np.ndarray:
        """One tensor, widened to fp32 without loss. Read-only."""
        dtype = self.dtypes[name]
        stored = np.frombuffer(self._raw[name], _FLOATS[dtype]).reshape(self.shapes[name])
        if dtype == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32, copy=False)


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """fp32 to the bits of the nearest bf16, ties to even: uint16. ``values`` must not hold NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


__all__ = ["FileTensors", "round_to_bfloat16"]
