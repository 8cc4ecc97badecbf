"""The blocks of GGUF's quantised types as matrices in groups of 32, exactly, where a group of 32 is what they have.

A row of a matrix is a run of blocks; how a block looks is said by ggml (ggml-quants.c, ggml-common.h). Q6_K has groups of 16
inputs, which is no form of ours: it is widened. Legend: O outputs, B blocks of a row, G groups of 32 inputs.
"""

from __future__ import annotations

import numpy as np
import torch

from evenflow.serving.models.stored.gguf_file import GGUFTensor
from evenflow.serving.quant.grouped_matrix import GroupedMatrix

EXACT = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K")
"""The types that are kept as they are."""

_BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


def grouped(tensor: GGUFTensor) -> GroupedMatrix:
    """A matrix of one of the types ``EXACT``."""
    blocks = np.ascontiguousarray(tensor.data).reshape(tensor.shape[0], -1, _BLOCK_BYTES[tensor.type])
    scales, minima, codes = _PARTS[tensor.type](blocks)
    bits = 8 if tensor.type in ("Q8_0", "Q5_K") else 4
    return GroupedMatrix(
        torch.from_numpy(codes.reshape(tensor.shape)),
        torch.from_numpy(np.ascontiguousarray(scales)),
        None if minima is None else torch.from_numpy(np.ascontiguousarray(minima)),
        bits,
    )


_Parts = tuple[np.ndarray, np.ndarray | None, np.ndarray]
"""Scales and minima [O, G], codes uint8 [O, ...]."""


def _f16(blocks: np.ndarray, first: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[..., first : first + 2]).view(np.float16)[..., 0]


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """The low ones of a run of bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _q8_0(blocks: np.ndarray) -> _Parts:
    return _f16(blocks, 0), None, blocks[..., 2:] ^ 128  # from two's complement to an offset of 128


def _q4_0(blocks: np.ndarray) -> _Parts:
    return _f16(blocks, 0), None, _nibbles(blocks[..., 2:])


def _q4_1(blocks: np.ndarray) -> _Parts:
    return _f16(blocks, 0), _f16(blocks, 2), _nibbles(blocks[..., 4:])


def _k_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima [O, 8 B] in fp32, which holds them exactly: 6 bits times a half each. A minimum is subtracted."""
    twelve = blocks[..., 4:16]
    low, middle, high = twelve[..., :4], twelve[..., 4:8], twelve[..., 8:]
    scale = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=-1)
    minimum = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=-1)
    of_scales, of_minima = (_f16(blocks, first).astype(np.float32)[..., None] for first in (0, 2))
    outputs = len(blocks)
    return (of_scales * scale).reshape(outputs, -1), (-of_minima * minimum).reshape(outputs, -1)


def _q4_k(blocks: np.ndarray) -> _Parts:
    scales, minima = _k_scales(blocks)
    return scales, minima, _nibbles(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32))


def _q5_k(blocks: np.ndarray) -> _Parts:
    scales, minima = _k_scales(blocks)
    four = _nibbles(blocks[..., 48:].reshape(*blocks.shape[:2], 4, 32)).reshape(*blocks.shape[:2], 8, 32)
    fifth = blocks[..., 16:48, None].swapaxes(-1, -2) >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return scales, minima, four | (fifth << 4)


_PARTS = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k, "Q5_K": _q5_k}


def widened(tensor: GGUFTensor) -> torch.Tensor:
    """The tensor in fp32, of any type that is read."""
    if tensor.type == "F32":
        return torch.from_numpy(tensor.data.astype(np.float32).reshape(tensor.shape))
    if tensor.type == "F16":
        return torch.from_numpy(tensor.data.view(np.float16).astype(np.float32).reshape(tensor.shape))
    if tensor.type == "BF16":
        bits = np.ascontiguousarray(tensor.data).view(np.uint16).astype(np.uint32) << 16
        return torch.from_numpy(bits.view(np.float32).reshape(tensor.shape))
    if tensor.type == "Q6_K":
        return _q6_k(np.ascontiguousarray(tensor.data).reshape(tensor.shape[0], -1, _BLOCK_BYTES["Q6_K"])).view(tensor.shape)
    return grouped(tensor).dequantise()


def _q6_k(blocks: np.ndarray) -> torch.Tensor:
    low, high = blocks[..., :128].reshape(*blocks.shape[:2], 2, 64), blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 32)
    four = _nibbles(low).reshape(*blocks.shape[:2], 2, 4, 32)
    two = high[..., None, :] >> (2 * np.arange(4, dtype=np.uint8))[:, None] & 3
    codes = (four | (two << 4)).astype(np.int8) - 32
    scales = blocks[..., 192:208].view(np.int8).astype(np.float32) * _f16(blocks, 208).astype(np.float32)[..., None]
    values = codes.reshape(*blocks.shape[:2], 16, 16).astype(np.float32) * scales[..., None]
    return torch.from_numpy(values)


__all__ = ["EXACT", "grouped", "widened"]
