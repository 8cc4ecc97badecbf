"""Tensors of a safetensors file as numpy arrays, without torch. numpy has no bf16: it is widened bit by bit.

The header is read here, strictly and within bounds, because a stranger may have written it: every tensor lies where the
format allows it to, in order, without gaps, and nothing is allocated that the file does not hold.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

_FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_LENGTH_BYTES = 8


class FileTensors:
    """All tensors of one file, parsed and checked, not yet converted. ``data``: the whole file.

    Raises ValueError, saying what is wrong, for a file that is truncated or no safetensors file, and for one with more
    than ``max_tensors`` tensors or a header of more than ``max_header_bytes``.
    """

    def __init__(
        self, data: bytes | memoryview, name: str, *, max_tensors: int = 20_000, max_header_bytes: int = 8 << 20
    ) -> None:
        whole = memoryview(data)
        self._raw: dict[str, memoryview] = {}
        self.dtypes: dict[str, str] = {}
        """safetensors' name of each tensor's dtype: F32, F16, BF16, I64, ..."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        length = int.from_bytes(whole[:_LENGTH_BYTES], "little")
        if len(whole) < _LENGTH_BYTES or length > len(whole) - _LENGTH_BYTES:
            raise ValueError(f"{name} is truncated or no safetensors file")
        if length > max_header_bytes:
            raise ValueError(f"the header of {name} has {length} bytes; allowed: {max_header_bytes}")
        try:
            header = json.loads(bytes(whole[_LENGTH_BYTES : _LENGTH_BYTES + length]), object_pairs_hook=_without_twins)
            header.pop("__metadata__", None)
            if len(header) > max_tensors:
                raise ValueError(f"it has {len(header)} tensors; allowed: {max_tensors}")
            self._place(header, whole[_LENGTH_BYTES + length :])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{name} is truncated or no safetensors file ({_in_words(error)})") from None

    def is_float(self, name: str) -> bool:
        """True for fp32, fp16 and bf16."""
        return self.dtypes[name] in _FLOATS

    def raw(self, name: str) -> memoryview:
        """The bytes as stored, little-endian."""
        return self._raw[name]

    def as_float32(self, name: str) -> np.ndarray:
        """One tensor, widened to fp32 without loss. Read-only."""
        return widened(self._raw[name], self.dtypes[name], self.shapes[name])

    def _place(self, header: dict[str, Any], body: memoryview) -> None:
        expected = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            sizes = (begin, end, *shape)
            if not isinstance(dtype, str) or not all(type(size) is int and size >= 0 for size in sizes):
                raise ValueError(f"tensor {name[:80]!r} is not described as the format says")
            if begin != expected or end < begin:
                raise ValueError(f"tensor {name[:80]!r} does not begin where the one before it ends")
            size = _SIZES.get(dtype)
            if size is not None and (len(shape) > 8 or math.prod(shape) * size != end - begin):
                raise ValueError(f"tensor {name[:80]!r} does not have the size of its shape")
            if end > len(body):
                raise ValueError("it ends before its tensors do")
            self._raw[name], self.dtypes[name], self.shapes[name] = body[begin:end], dtype, tuple(shape)
            expected = end
        if expected != len(body):
            raise ValueError("it has bytes that belong to no tensor")


def widened(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Stored floats (F32, F16 or BF16) as fp32, without loss. Read-only if nothing had to be widened."""
    stored = np.frombuffer(data, _FLOATS[dtype]).reshape(shape)
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """fp32 to the bits of the nearest bf16, ties to even: uint16. ``values`` must not hold NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name is given twice")
    return table


def _in_words(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"{type(error).__name__} in its header"


__all__ = ["FileTensors", "round_to_bfloat16", "widened"]
