"""Hadamard rotations: spread outliers before quantising, and project at random (SRHT).

``hadamard-int4``, ``hadamard-fp8``: random signs and a Hadamard matrix per block, then the block's quantiser (the idea of
TACO, 2604.24088, and TAH-Quant, 2506.01352, without their adaptive parts). The signs are fixed, so nothing travels.

``srht:share``: subsampled randomised Hadamard transform of the last dimension, linear and unbiased:
z = sqrt(h'/k) P H D x and x' = D H^T P^T z sqrt(h'/k), with signs D and rows P from the shared seed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from evenflow.comm import wire
from evenflow.comm.compressor import (
    NO_CONTEXT,
    Algebra,
    Compressor,
    Context,
    GradientRule,
    Shape,
    WirePlan,
    num_elements,
    rows_and_width,
)
from evenflow.comm.compressors.floats import BlockFloat
from evenflow.comm.compressors.quantise import GroupInt
from evenflow.comm.compressors.sparsify import seed_of
from evenflow.comm.spec_arguments import fraction, no_arguments


def hadamard(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the orthonormal Sylvester-Hadamard matrix [size, size]; ``size`` a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return (matrix / math.sqrt(size)).to(dtype)


def transform(x: Tensor) -> Tensor:
    """Apply the orthonormal Hadamard transform to the last dimension, a power of two.

    H of size a*b is the Kronecker product of H_a and H_b: two small matrix products instead of log2 passes.
    """
    size = x.shape[-1]
    b = 1 << ((size.bit_length() - 1) // 2)
    a = size // b
    grid = x.reshape(-1, a, b) @ hadamard(b, x.dtype).to(x.device)
    return (hadamard(a, x.dtype).to(x.device) @ grid).view(x.shape)


class Hadamard(Compressor):
    """Rotate blocks of ``block`` neighbours, then encode them with ``inner``."""

    by_rows = False

    def __init__(self, inner: Compressor, block: int) -> None:
        super().__init__()
        self.inner = inner
        self.block = block
        signs = torch.randint(0, 2, (block,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
        self.rotation = signs[:, None] * hadamard(block)

    def _padded(self, shape: Shape) -> tuple[int]:
        return (-(-num_elements(shape) // self.block) * self.block,)

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        return self.inner.wire_plan(self._padded(shape), torch.float32)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        (size,) = self._padded(x.shape)
        flat = pad(x.detach().reshape(-1).float(), (0, size - x.numel()))
        return self.inner.encode((flat.view(-1, self.block) @ self.rotation.to(x.device)).view(-1), context)

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        size = self._padded(shape)
        rotated = self.inner.decode(message, size, torch.float32, context).view(-1, self.block)
        flat = (rotated @ self.rotation.T.to(message.device)).view(-1)
        return wire.narrow(flat[: num_elements(shape)], dtype).view(tuple(shape))


class SRHT(Compressor):
    """Keep a random ``share`` of the Hadamard coefficients of every row. Message: [rows, k] in x's dtype."""

    algebra = Algebra.LINEAR
    gradient = GradientRule.AUTOGRAD

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def sizes(self, width: int) -> tuple[int, int]:
        """Return (power of two that holds ``width``, coefficients kept)."""
        padded = 1 << max(0, width - 1).bit_length()
        return padded, max(1, min(padded, round(self.share * width)))

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        rows, width = rows_and_width(shape)
        return WirePlan(rows * self.sizes(width)[1] * dtype.itemsize)

    def _draw(self, width: int, context: Context, like: Tensor) -> tuple[Tensor, Tensor]:
        padded, k = self.sizes(width)
        generator = torch.Generator().manual_seed(seed_of(context, salt=1))
        signs = torch.randint(0, 2, (padded,), generator=generator) * 2 - 1
        kept = torch.randperm(padded, generator=generator)[:k]
        return signs.to(like), kept.to(like.device)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        rows, width = rows_and_width(x.shape)
        padded, k = self.sizes(width)
        signs, kept = self._draw(width, context, x)
        full = transform(pad(x.reshape(rows, width), (0, padded - width)) * signs)
        return full[:, kept] * math.sqrt(padded / k)

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        rows, width = rows_and_width(shape)
        padded, k = self.sizes(width)
        signs, kept = self._draw(width, context, message)
        full = message.new_zeros(rows, padded).index_copy(1, kept, message.reshape(rows, k) * math.sqrt(padded / k))
        return (transform(full) * signs)[:, :width].to(dtype).reshape(tuple(shape))


def hadamard_int4(*arguments: str) -> Compressor:
    """Return group-32 int4 behind a 32 x 32 rotation."""
    no_arguments("hadamard-int4", arguments)
    return Hadamard(GroupInt(4), 32)


def hadamard_fp8(*arguments: str) -> Compressor:
    """Return FP8 e4m3 per 128 behind a 128 x 128 rotation."""
    no_arguments("hadamard-fp8", arguments)
    return Hadamard(BlockFloat(8, 128, is_microscaled=False), 128)


def srht(share: str = "0.1", *rest: str) -> Compressor:
    """Return the subsampled randomised Hadamard transform that keeps that share."""
    no_arguments("srht:share", rest)
    return SRHT(fraction("srht", share))
