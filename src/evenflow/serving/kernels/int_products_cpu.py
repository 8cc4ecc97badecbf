"""Products of rows of floats with a matrix of int8 or int4 codes in groups of 32, on the CPU.

Semantics, for a row x and a column c of the output:
    sx[g] = max |x[g]| / 127;   q[g] = rint(x[g] / sx[g])                              (groups g of 32 inputs)
    y[c]  = bias[c] + sum_g scale[g, c] sx[g] (q[g] . (code[g, c] - offset)) + minimum[g, c] sx[g] sum(q[g])
Sums of a group are exact integers, those over groups fp32, rounded once to the element of y. What a row gets does not depend
on the other rows, nor on the number of threads. Knows addresses and numbers; ``int_tiles`` is the inner code and says how a
matrix is laid out.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types

from evenflow.serving.kernels.int_tiles import (
    ACTIVATION_BYTES,
    COLUMNS,
    GROUP,
    Format,
    quantise_group,
    record_size,
    tile,
)
from evenflow.serving.kernels.simd import _operation, add, itemsize, load, load_f32, load_one, load_one_f32, store, store_one

ROWS = 8
"""Rows of the largest tile."""
_ROW_GAP = 64
"""Bytes between the activations of two rows, so that they do not fall on the same sets of the first-level cache."""
_CHUNK_BYTES = 400_000
"""Activations that are multiplied with all columns before the next rows: they stay in the second-level cache."""
_SHARED_ROWS = 16
"""Up to so many rows each thread makes activations for itself; waiting for another thread takes longer."""


def activation_stride(inputs: int) -> int:
    """Bytes from the activations of one row to those of the next."""
    return -(-inputs // GROUP) * ACTIVATION_BYTES + _ROW_GAP


def scratch_bytes(num_threads: int, num_rows: int, inputs: int) -> int:
    """Bytes of scratch that a product needs."""
    copies = num_threads if num_rows <= _SHARED_ROWS else 1
    return copies * num_rows * activation_stride(inputs) + num_threads * ROWS * COLUMNS * 4 + 64


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _quantise_rows(element, first, last, x, x_stride, inputs, target, stride, offset, spare):
    """Activations of rows ``first`` to ``last``. ``spare``: 128 bytes, for a last group that is not whole."""
    size = itemsize(element)
    whole = inputs // GROUP
    for row in range(first, last):
        source = x + x_stride * row
        to = target + stride * row
        for g in range(whole):
            quantise_group(element, source + size * GROUP * g, to + ACTIVATION_BYTES * g, offset)
        if inputs % GROUP:
            for i in range(GROUP):
                value = load_one(element, source + size * (GROUP * whole + i)) if GROUP * whole + i < inputs else np.float32(0)
                store_one(element, spare + size * i, value)
            quantise_group(element, spare, to + ACTIVATION_BYTES * whole, offset)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _finish(element, rows, tiles, columns, bias, y, y_stride):
    """Sums [rows, 32] to elements of y, with the bias (elements; 0: none)."""
    size = itemsize(element)
    for row in range(rows):
        source, to = tiles + 4 * COLUMNS * row, y + y_stride * row
        done = 0
        while done + 16 <= columns:
            value = load_f32(source + 4 * done)
            if bias != 0:
                value = add(value, load(element, bias + size * done))
            store(element, to + size * done, value)
            done += 16
        while done < columns:
            one = load_one_f32(source + 4 * done)
            if bias != 0:
                one += load_one(element, bias + size * done)
            store_one(element, to + size * done, one)
            done += 1


# Sixteen registers of 32 bytes hold a tile of two rows, thirty-two of 64 bytes one of eight.
_MOST = ROWS if binding.get_host_cpu_features().get("avx512f") else 2
_TILE_8, _TILE_4, _TILE_2, _TILE_1 = tile(8), tile(4), tile(2), tile(1)
_BLOCKS = types.void(*[types.int64] * 12)


def block_kernel(form: Format, element: np.uint16 | np.float32) -> Any:
    """The product of rows of activations with blocks of columns, for one format and element, as a C function: a numba cfunc.

    It is called by address (``.address``; keep the object), so that each format is compiled once and not in every caller.
    """

    @numba.cfunc(_BLOCKS, cache=True, error_model="numpy")
    def blocks(activations, stride, num_rows, w, groups, first, last, outputs, bias, y, y_stride, tiles):
        """Write all rows of the columns of some blocks. Arguments, all int64; addresses are of bytes:

        | argument | meaning |
        |---|---|
        | activations | address of the first row of quantised activations |
        | stride | bytes from one row of them to the next |
        | num_rows | rows |
        | w | address of the packed matrix |
        | groups | groups of inputs in a row of weights |
        | first, last | blocks of 32 columns, without the last |
        | outputs | columns of the matrix |
        | bias | address of its values in the element's type; 0: none |
        | y, y_stride | address of the first row of results, bytes from one to the next |
        | tiles | address of scratch, ROWS x 32 fp32 values |
        """
        size = itemsize(element)
        for block in range(first, last):
            stream = w + record_size(form) * groups * block
            columns = min(COLUMNS, outputs - COLUMNS * block)
            row = 0
            while row < num_rows:
                left = num_rows - row
                x = activations + stride * row
                if _MOST >= 8 and left >= 8:
                    rows = 8
                    _TILE_8(form, x, stride, stream, groups, tiles)
                elif _MOST >= 4 and left >= 4:
                    rows = 4
                    _TILE_4(form, x, stride, stream, groups, tiles)
                elif left >= 2:
                    rows = 2
                    _TILE_2(form, x, stride, stream, groups, tiles)
                else:
                    rows = 1
                    _TILE_1(form, x, stride, stream, groups, tiles)
                of_bias = bias + size * COLUMNS * block if bias != 0 else 0
                _finish(element, rows, tiles, columns, of_bias, y + y_stride * row + size * COLUMNS * block, y_stride)
                row += rows

    return blocks


@_operation
def _call_blocks(typingctx, kernel, arguments):
    """Call the C function at the address ``kernel`` with twelve integers."""

    def codegen(ctx, builder, sig, args):
        kernel, packed = args
        values = [builder.extract_value(packed, i) for i in range(12)]
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 12)
        builder.call(builder.inttoptr(kernel, kind.as_pointer()), values)
        return ctx.get_dummy_value()

    return types.void(types.int64, types.UniTuple(types.int64, 12)), codegen


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _part(kernel, num_rows, activations, stride, w, groups, first, last, outputs, bias, y, y_stride, tiles):
    """Blocks of columns ``first`` to ``last``, for all rows: as many rows at a time as stay in the second-level cache."""
    chunk = max(ROWS, _CHUNK_BYTES // stride // ROWS * ROWS)
    for start in range(0, num_rows, chunk):
        rows = min(chunk, num_rows - start)
        x, to = activations + stride * start, y + y_stride * start
        _call_blocks(kernel, (x, stride, rows, w, groups, first, last, outputs, bias, to, y_stride, tiles))


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _few_rows(
    kernel, element, offset, num_threads, num_rows, x, x_stride, inputs, w, outputs, bias, y, y_stride, scratch, stride
):
    groups, blocks = -(-inputs // GROUP), -(-outputs // COLUMNS)
    for i in numba.prange(num_threads):
        own = scratch + stride * num_rows * i
        tiles = scratch + stride * num_rows * num_threads + 4 * ROWS * COLUMNS * i
        _quantise_rows(element, 0, num_rows, x, x_stride, inputs, own, stride, offset, tiles)
        first, last = blocks * i // num_threads, blocks * (i + 1) // num_threads
        _part(kernel, num_rows, own, stride, w, groups, first, last, outputs, bias, y, y_stride, tiles)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _quantise_parallel(element, num_threads, num_rows, x, x_stride, inputs, scratch, stride, offset):
    for i in numba.prange(num_threads):
        spare = scratch + stride * num_rows + 4 * ROWS * COLUMNS * i
        first, last = num_rows * i // num_threads, num_rows * (i + 1) // num_threads
        _quantise_rows(element, first, last, x, x_stride, inputs, scratch, stride, offset, spare)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _many_rows(kernel, num_threads, num_rows, inputs, w, outputs, bias, y, y_stride, scratch, stride):
    groups, blocks = -(-inputs // GROUP), -(-outputs // COLUMNS)
    for i in numba.prange(num_threads):
        tiles = scratch + stride * num_rows + 4 * ROWS * COLUMNS * i
        first, last = blocks * i // num_threads, blocks * (i + 1) // num_threads
        _part(kernel, num_rows, scratch, stride, w, groups, first, last, outputs, bias, y, y_stride, tiles)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def multiply(
    kernel, element, offset, num_threads, num_rows, x, x_stride, inputs, w, outputs, bias, y, y_stride, scratch, stride
):
    """y[T, O] = bias[O] + x[T, I] W[O, I]^T of a packed matrix W.

    Table of arguments (addresses are integers):
        kernel       address  of the ``block_kernel`` of the matrix's format and this element
        element      type     what x, bias and y are stored as: see ``simd.element_of``
        offset       int      ``int_tiles.code_offset`` of the format
        num_threads  int      parts that the columns are cut into; 1 starts no parallel region
        num_rows     int      T
        x, x_stride  address  of row 0, and bytes from row to row
        inputs       int      I
        w            address  of the packed matrix
        outputs      int      O
        bias         address  [O]; 0: none
        y, y_stride  address  of row 0, and bytes from row to row; receives the product
        scratch      address  ``scratch_bytes`` bytes
        stride       int      ``activation_stride`` of I
    """
    if num_threads > 1 and num_rows <= _SHARED_ROWS:
        _few_rows(
            kernel, element, offset, num_threads, num_rows, x, x_stride, inputs, w, outputs, bias, y, y_stride, scratch, stride
        )
        return
    if num_threads == 1:
        tiles = scratch + stride * num_rows
        _quantise_rows(element, 0, num_rows, x, x_stride, inputs, scratch, stride, offset, tiles)
        groups, blocks = -(-inputs // GROUP), -(-outputs // COLUMNS)
        _part(kernel, num_rows, scratch, stride, w, groups, 0, blocks, outputs, bias, y, y_stride, tiles)
    else:
        # In functions of their own: numba would make one loop of the two, since it sees no addresses.
        _quantise_parallel(element, num_threads, num_rows, x, x_stride, inputs, scratch, stride, offset)
        _many_rows(kernel, num_threads, num_rows, inputs, w, outputs, bias, y, y_stride, scratch, stride)


__all__ = ["activation_stride", "block_kernel", "multiply", "scratch_bytes"]
