"""Products with quantised matrices: packed for the CPU's kernels, dequantised on other devices.

Legend: T rows, O outputs, I inputs, G groups of 32 inputs, B blocks of 32 columns (outputs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import torch

from evenflow.serving.kernels.int_products_cpu import activation_stride, block_kernel, multiply, scratch_bytes
from evenflow.serving.kernels.int_tiles import COLUMNS, GROUP, Dot, code_bytes, code_offset, format_argument, record_bytes
from evenflow.serving.kernels.simd import element_of
from evenflow.serving.quant.grouped_matrix import GroupedMatrix

ONE_THREAD_BYTES = 48 << 10
"""A product that reads so few bytes of weights for each row is computed by one thread; waking another one takes longer."""
_LINE = 64


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A quantised matrix as the CPU's kernels read it (``int_tiles``): one stream of records for each 32 outputs."""

    packed: torch.Tensor
    """uint8 [B, G, record], its first byte at a multiple of 64."""
    outputs: int
    inputs: int
    bits: int
    scale_bytes: int
    has_minima: bool

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        return self.packed.numel()

    def meta(self) -> dict[str, int]:
        """All but the bytes, as JSON has it."""
        return {
            "outputs": self.outputs,
            "inputs": self.inputs,
            "bits": self.bits,
            "scale_bytes": self.scale_bytes,
            "has_minima": int(self.has_minima),
        }

    def unpack(self, rows_T: torch.Tensor | None = None) -> GroupedMatrix:
        """The matrix that it was packed from, or these of its rows (outputs), in this order."""
        lines = code_bytes(self.bits)
        if rows_T is None:
            blocks = self.packed
        else:
            blocks = self.packed.index_select(0, rows_T // COLUMNS)
        num_blocks, num_groups, _ = blocks.shape
        codes = blocks[..., :lines]
        if self.bits == 4:
            pairs = codes.view(num_blocks, num_groups, 2, 4, 16, 4)
            codes = torch.stack([pairs & 15, pairs >> 4], dim=4)  # b g half line nibble column byte
        codes = codes.reshape(num_blocks, num_groups, 2, 8, 16, 4).permute(0, 2, 4, 1, 3, 5)
        codes = codes.reshape(num_blocks, COLUMNS, num_groups * GROUP)
        dtype = torch.float16 if self.scale_bytes == 2 else torch.float32
        others = []
        for first in range(lines, blocks.shape[2], COLUMNS * self.scale_bytes):
            part = blocks[..., first : first + COLUMNS * self.scale_bytes].contiguous().view(dtype)
            others.append(part.permute(0, 2, 1))
        if rows_T is None:
            codes, others = codes.flatten(0, 1), [part.flatten(0, 1) for part in others]
            codes, others = codes[: self.outputs], [part[: self.outputs] for part in others]
        else:
            places = torch.arange(len(rows_T)), rows_T % COLUMNS
            codes, others = codes[places], [part[places] for part in others]
        minima = others[1].contiguous() if self.has_minima else None
        return GroupedMatrix(codes[:, : self.inputs].contiguous(), others[0].contiguous(), minima, self.bits)


def aligned_bytes(num_bytes: int) -> torch.Tensor:
    """uint8 [num_bytes], not initialised, that begins at a multiple of 64."""
    room = torch.empty(num_bytes + _LINE, dtype=torch.uint8)
    first = -room.data_ptr() % _LINE
    return room[first : first + num_bytes]


def packed_shape(matrix: GroupedMatrix) -> tuple[int, int, int]:
    """[B, G, record] of the packed form."""
    outputs, inputs = matrix.shape
    size = record_bytes(matrix.bits, matrix.scales_OG.dtype.itemsize, matrix.minima_OG is not None)
    return -(-outputs // COLUMNS), -(-inputs // GROUP), size


def pack(matrix: GroupedMatrix) -> PackedMatrix:
    """Put a matrix into the order in which the CPU's kernels read it. Columns that fill the last block have scale 0."""
    outputs, inputs = matrix.shape
    num_blocks, num_groups, size = packed_shape(matrix)
    packed = aligned_bytes(num_blocks * num_groups * size).view(num_blocks, num_groups, size)
    step = max(1, (1 << 22) // (num_groups * GROUP * COLUMNS))  # a few megabytes at a time
    for first in range(0, num_blocks, step):
        rows = range(COLUMNS * first, min(COLUMNS * (first + step), outputs))
        _pack_blocks(matrix.part(rows), packed[first : first + step])
    return PackedMatrix(packed, outputs, inputs, matrix.bits, matrix.scales_OG.dtype.itemsize, matrix.minima_OG is not None)


def packed_of(meta: Mapping[str, int], data: torch.Tensor) -> PackedMatrix:
    """The matrix that said ``meta`` of itself, from its bytes: uint8, flat, at a multiple of 64."""
    size = record_bytes(meta["bits"], meta["scale_bytes"], bool(meta["has_minima"]))
    packed = data.view(-(-meta["outputs"] // COLUMNS), -(-meta["inputs"] // GROUP), size)
    return PackedMatrix(packed, meta["outputs"], meta["inputs"], meta["bits"], meta["scale_bytes"], bool(meta["has_minima"]))


def _pack_blocks(matrix: GroupedMatrix, packed: torch.Tensor) -> None:
    outputs, inputs = matrix.shape
    num_blocks, num_groups, _ = packed.shape
    codes = matrix.codes_OI
    spare_rows, spare_inputs = num_blocks * COLUMNS - outputs, num_groups * GROUP - inputs
    if spare_rows or spare_inputs:
        codes = torch.nn.functional.pad(codes, (0, spare_inputs, 0, spare_rows), value=matrix.offset)
    lines = code_bytes(matrix.bits)
    # [b, half, column, g, quad, byte] to [b, g, half, quad, column, byte]
    ordered = codes.view(num_blocks, 2, 16, num_groups, 8, 4).permute(0, 3, 1, 4, 2, 5)
    if matrix.bits == 4:
        ordered = ordered.unflatten(3, (4, 2))
        ordered = ordered[:, :, :, :, 0] | (ordered[:, :, :, :, 1] << 4)
    packed[..., :lines] = ordered.reshape(num_blocks, num_groups, lines)
    first = lines
    for part in (matrix.scales_OG, matrix.minima_OG):
        if part is None:
            continue
        if spare_rows:
            part = torch.nn.functional.pad(part, (0, 0, 0, spare_rows))
        ordered = part.view(num_blocks, COLUMNS, num_groups).permute(0, 2, 1).contiguous().view(torch.uint8)
        packed[..., first : first + ordered.shape[-1]] = ordered
        first += ordered.shape[-1]


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """A weight matrix [O, I] in few bits: parts whose outputs follow one another, each in a format of its own."""

    parts: tuple[PackedMatrix, ...]
    dtype: torch.dtype
    """Of the numbers that it is multiplied with."""

    @property
    def device(self) -> torch.device:
        """Where it lies: the CPU."""
        return self.parts[0].packed.device

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """[O, I]."""
        return sum(part.outputs for part in self.parts), self.parts[0].inputs

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        return sum(part.num_bytes for part in self.parts)

    def index_select(self, dim: int, rows_T: torch.Tensor) -> torch.Tensor:
        """These rows, dequantised: a new [T, I]. ``dim`` is 0. For matrices of one part."""
        assert dim == 0
        (part,) = self.parts
        return part.unpack(rows_T).dequantise(self.dtype)

    def new_zeros(self, *shape: int) -> torch.Tensor:
        """Zeros of the dtype."""
        return torch.zeros(shape, dtype=self.dtype)

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        """All of it: a new [O, I]."""
        return torch.cat([part.unpack().dequantise(dtype) for part in self.parts])


def quantised_weight(matrices: Sequence[GroupedMatrix], dtype: torch.dtype) -> QuantisedWeight:
    """Pack matrices whose outputs follow one another, for products with ``dtype``."""
    return QuantisedWeight(tuple(pack(matrix) for matrix in matrices), dtype)


@cache
def _compiled(bits: int, scale_bytes: int, has_minima: bool, dot: Dot | None, itemsize: int) -> Any:
    """The kernel of a format and an element, loaded or compiled once in a process."""
    return block_kernel(format_argument(bits, scale_bytes, has_minima, dot), element_of(itemsize))


def quantised_matmul(
    weight: QuantisedWeight, bias_O: torch.Tensor | None, dot: Dot | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """x_TI -> x_TI W_OI^T + bias_O on the CPU, a new contiguous [T, O]: see ``int_products_cpu``.

    Apart from rounding, |y - x W^T| <= sum_g max|x_g| / 254 sum_i |w_gi|: activations are rounded to 127 levels a group.
    ``dot``: how bytes are multiplied, for tests; None: the best that the processor has.
    """
    outputs, inputs = weight.shape
    element = element_of(weight.dtype.itemsize)
    # The parts and kernels themselves are there so that what the addresses point to lives as long as the function.
    steps: list[tuple[PackedMatrix, Any, int, int, int]] = []
    first = 0
    for part in weight.parts:
        kernel = _compiled(part.bits, part.scale_bytes, part.has_minima, dot, weight.dtype.itemsize)
        steps.append((part, kernel, code_offset(part.bits, part.has_minima), part.packed.data_ptr(), first))
        first += part.outputs
    stride, num_bytes = activation_stride(inputs), weight.num_bytes
    bias_O = None if bias_O is None else bias_O.contiguous()

    def packed_matmul(x_TI: torch.Tensor) -> torch.Tensor:
        num_rows = len(x_TI)
        assert x_TI.dtype == weight.dtype
        assert x_TI.stride(1) == 1
        size = x_TI.element_size()
        y_TO = torch.empty((num_rows, outputs), dtype=x_TI.dtype)
        num_threads = min(torch.get_num_threads(), numba.get_num_threads())
        if num_bytes * num_rows <= ONE_THREAD_BYTES:
            num_threads = 1
        scratch = torch.empty(scratch_bytes(num_threads, num_rows, inputs), dtype=torch.uint8)
        x, y = x_TI.data_ptr(), y_TO.data_ptr()
        bias = 0 if bias_O is None else bias_O.data_ptr()
        for part, kernel, offset, packed, column in steps:
            multiply(
                kernel.address,
                element,
                offset,
                num_threads,
                num_rows,
                x,
                x_TI.stride(0) * size,
                inputs,
                packed,
                part.outputs,
                bias and bias + size * column,
                y + size * column,
                outputs * size,
                scratch.data_ptr(),
                stride,
            )
        return y_TO

    return packed_matmul


__all__ = ["PackedMatrix", "QuantisedWeight", "pack", "packed_of", "quantised_matmul", "quantised_weight"]
