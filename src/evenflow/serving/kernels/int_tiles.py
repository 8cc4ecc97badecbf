"""The inner code of integer products: tiles of 1 to 8 rows by 32 columns, and rows of activations as int8, as LLVM builders.

A packed matrix is a stream for each block of 32 columns: one record for each group of 32 inputs, of codes, scales and, where
the format has them, minima. Codes are unsigned (0..15 or 0..255) and activations signed bytes, which is what the instruction
that multiplies bytes takes: four bytes of 16 columns at once. The offset of symmetric codes (8 or 128) costs nothing: sums
begin at minus the offset times the sum of the activations of the group.

    record of 32 columns x 32 inputs:  codes, for columns 0..15, then 16..31: lines of 64 bytes
                                           8 bits: line j = inputs 4j..4j+3 of 16 columns, column by column
                                           4 bits: line j = inputs 8j..8j+3 in the low nibbles, 8j+4..8j+7 in the high ones
                                       scales [32], f16 or f32
                                       minima [32], the same, if any
    activations of one row and group:  codes s8 [32], scale f32, start i32, sum f32, 4 bytes nothing   (48 bytes)

numba does not notice a change of this file in the functions of ``int_products_cpu`` that it has cached: touch that file
after an edit here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from evenflow.serving.kernels.simd import _is_element, _load, _operation, _shuffle, _vector

GROUP = 32
COLUMNS = 32
"""Columns of one stream."""
ACTIVATION_BYTES = 48
_SCALE_AT, _START_AT, _SUM_AT = 32, 36, 40
_HALF_COLUMNS = 16
_AHEAD_BYTES = 2048
"""How far ahead of the codes that are multiplied memory is asked for the next ones."""

_MOST_KEPT_ROWS = 2
"""Up to so many rows have their activations in registers for both halves of the columns."""

Dot = Literal["vnni", "words", "plain"]
"""How bytes are multiplied: by the instruction for it, as pairs of 16-bit words, or one by one."""

_I8, _I16, _I32, _I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F16, _F32 = ir.HalfType(), ir.FloatType()
_LANES_I32, _LANES_F32 = ir.VectorType(_I32, 16), ir.VectorType(_F32, 16)


def code_bytes(bits: int) -> int:
    """Bytes of the codes of a record."""
    return COLUMNS * GROUP * bits // 8


def record_bytes(bits: int, scale_bytes: int, has_minima: bool) -> int:
    """Bytes of a record: a multiple of 64."""
    return code_bytes(bits) + COLUMNS * scale_bytes * (2 if has_minima else 1)


def best_dot(features: str) -> Dot:
    """What the processor of these LLVM features has."""
    if "+avx512vnni" in features:
        return "vnni"
    return "words" if "+avx512bw" in features or "+avx2" in features else "plain"


def _pointer(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    return builder.inttoptr(builder.add(address, ir.Constant(_I64, offset)), kind.as_pointer())


def _get(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    return builder.load(_pointer(builder, address, offset, kind), align=1)


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    empty = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(_I32, 0))
    return _shuffle(builder, one, empty, [0] * kind.count)


def _all(kind: Any, value: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _called(builder: Any, name: str, result: Any, *operands: Any) -> Any:
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)


def _halves(builder: Any, x: Any) -> list[Any]:
    half = x.type.count // 2
    return [_shuffle(builder, x, x, list(range(half))), _shuffle(builder, x, x, list(range(half, 2 * half)))]


def _multiply_words(builder: Any, a: Any, b: Any, features: str) -> Any:
    """Pairs of 16-bit words, multiplied and added: [32] and [32] of i16 to [16] of i32."""
    if "+avx512bw" in features:
        return _called(builder, "llvm.x86.avx512.pmaddw.d.512", _LANES_I32, a, b)
    half = ir.VectorType(_I32, 8)
    parts = [_called(builder, "llvm.x86.avx2.pmadd.wd", half, x, y) for x, y in zip(_halves(builder, a), _halves(builder, b))]
    return _shuffle(builder, parts[0], parts[1], list(range(16)))


def _dot(builder: Any, sums: Any, codes: Any, quad: Any, dot: Dot, features: str) -> Any:
    """Sums + codes . quad: unsigned bytes of 16 columns times four signed bytes, the same for all columns."""
    four = _splat(builder, quad, _LANES_I32)
    if dot == "vnni":
        # LLVM 22 gave the instruction's operands their true types.
        operands = ir.VectorType(_I8, 64) if binding.llvm_version_info[0] >= 22 else _LANES_I32
        codes, four = builder.bitcast(codes, operands), builder.bitcast(four, operands)
        return _called(builder, "llvm.x86.avx512.vpdpbusd.512", _LANES_I32, sums, codes, four)
    if dot == "words":
        words = ir.VectorType(_I16, 32)
        codes, four, eight = builder.bitcast(codes, words), builder.bitcast(four, words), _all(words, 8)
        even = _multiply_words(
            builder, builder.and_(codes, _all(words, 255)), builder.ashr(builder.shl(four, eight), eight), features
        )
        odd = _multiply_words(builder, builder.lshr(codes, eight), builder.ashr(four, eight), features)
        return builder.add(sums, builder.add(even, odd))
    for byte in range(4):
        code = builder.and_(builder.lshr(codes, _all(_LANES_I32, 8 * byte)), _all(_LANES_I32, 255))
        value = builder.ashr(builder.shl(four, _all(_LANES_I32, 24 - 8 * byte)), _all(_LANES_I32, 24))
        sums = builder.add(sums, builder.mul(code, value))
    return sums


def _codes(builder: Any, w: Any, half: int, bits: int) -> list[Any]:
    """The eight vectors of codes of 16 columns: four inputs each."""
    at = half * code_bytes(bits) // 2
    if bits == 8:
        return [_get(builder, w, at + 64 * line, _LANES_I32) for line in range(8)]
    found = []
    for line in range(4):
        pair = _get(builder, w, at + 64 * line, _LANES_I32)
        mask = _all(_LANES_I32, 0x0F0F0F0F)
        found += [builder.and_(pair, mask), builder.and_(builder.lshr(pair, _all(_LANES_I32, 4)), mask)]
    return found


def _scales(builder: Any, w: Any, at: int, scale_bytes: int) -> Any:
    if scale_bytes == 4:
        return _get(builder, w, at, _LANES_F32)
    return builder.fpext(_get(builder, w, at, ir.VectorType(_F16, 16)), _LANES_F32)


Format = tuple[np.generic, np.generic, np.generic, np.generic]
"""A format as the types of four values, so that numba compiles a kernel for each: see ``format_argument``."""


_WAYS: dict[Dot | None, np.generic] = {
    None: np.int64(0),
    "vnni": np.uint32(0),
    "words": np.int16(0),
    "plain": np.int32(0),
}


def format_argument(bits: int, scale_bytes: int, has_minima: bool, dot: Dot | None = None) -> Format:
    """The ``form`` argument of the kernels. ``dot``: how bytes are multiplied; None: the best that the processor has."""
    return (
        np.uint8(0) if bits == 8 else np.int8(0),
        np.uint16(0) if scale_bytes == 2 else np.float32(0),
        np.bool_(0) if has_minima else np.uint8(0),
        _WAYS[dot],
    )


def _read_format(form: Any) -> tuple[int, int, bool, Dot | None]:
    """What ``format_argument`` was given, from the type of what it returned."""
    bits, scale, minima, dot = form.types
    ways: dict[Any, Dot | None] = {types.uint32: "vnni", types.int16: "words", types.int32: "plain"}
    return 8 if bits == types.uint8 else 4, 2 if scale == types.uint16 else 4, minima == types.boolean, ways.get(dot)


@_operation
def record_size(typingctx, form):
    """``record_bytes`` of the format, a constant."""
    size = record_bytes(*_read_format(form)[:3])
    return types.int64(form), lambda ctx, builder, sig, args: ir.Constant(_I64, size)


def code_offset(bits: int, has_minima: bool) -> int:
    """What symmetric codes are offset by; 0 where there are minima."""
    return 0 if has_minima else 1 << (bits - 1)


def tile(rows: int) -> Callable[..., None]:
    """The product of ``rows`` rows of activations with one stream of 32 columns, as a numba function of addresses.

    Semantics: out[r, c] = sum_g scale[g, c] sx[r, g] (start[r, g] + sum_i code[c, i] x[r, i]) + minimum[g, c] sum[r, g].

    Arguments: form, x (activations of row 0), x_stride (bytes from row to row), w (the stream), groups, out (f32 [rows, 32]).
    """

    def build(builder: Any, form: Any, args: Any, features: str) -> None:
        bits, scale_bytes, has_minima, dot = _read_format(form)
        size = record_bytes(bits, scale_bytes, has_minima)
        way = dot or best_dot(features)
        _, x, x_stride, w, groups, out = args
        before = builder.block
        loop, after = builder.append_basic_block("group"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed(">", groups, ir.Constant(_I64, 0)), loop, after)
        builder.position_at_end(loop)
        index, at_x, at_w = (builder.phi(_I64) for _ in range(3))
        sums = [builder.phi(_LANES_F32) for _ in range(2 * rows)]
        for phi, start in ((index, ir.Constant(_I64, 0)), (at_x, x), (at_w, w)):
            phi.add_incoming(start, before)
        zero = _all(_LANES_F32, 0.0)
        for phi in sums:
            phi.add_incoming(zero, before)
        if rows <= 2:
            _ask_ahead(builder, at_w, size)
        new_sums: list[Any] = list(sums)
        for half in range(2):
            if half == 0 or rows > _MOST_KEPT_ROWS:
                row_at = [at_x if half == 0 else _forgotten(builder, at_x)]
                for _ in range(1, rows):
                    row_at.append(builder.add(row_at[-1], x_stride))
            codes = _codes(builder, at_w, half, bits)
            scales_at = code_bytes(bits) + half * _HALF_COLUMNS * scale_bytes
            scales = _scales(builder, at_w, scales_at, scale_bytes)
            minima = _scales(builder, at_w, scales_at + COLUMNS * scale_bytes, scale_bytes) if has_minima else None
            for row in range(rows):
                total = (
                    _all(_LANES_I32, 0)
                    if has_minima
                    else _splat(builder, _get(builder, row_at[row], _START_AT, _I32), _LANES_I32)
                )
                for quad, code in enumerate(codes):
                    total = _dot(builder, total, code, _get(builder, row_at[row], 4 * quad, _I32), way, features)
                scale = _splat(builder, _get(builder, row_at[row], _SCALE_AT, _F32), _LANES_F32)
                place = 2 * row + half
                new_sums[place] = _called(
                    builder,
                    "llvm.fma.v16f32",
                    _LANES_F32,
                    builder.sitofp(total, _LANES_F32),
                    builder.fmul(scales, scale),
                    new_sums[place],
                )
                if minima is not None:
                    of_row = _splat(builder, _get(builder, row_at[row], _SUM_AT, _F32), _LANES_F32)
                    new_sums[place] = _called(builder, "llvm.fma.v16f32", _LANES_F32, minima, of_row, new_sums[place])
        next_index = builder.add(index, ir.Constant(_I64, 1))
        end = builder.block
        index.add_incoming(next_index, end)
        at_x.add_incoming(builder.add(at_x, ir.Constant(_I64, ACTIVATION_BYTES)), end)
        at_w.add_incoming(builder.add(at_w, ir.Constant(_I64, size)), end)
        for phi, value in zip(sums, new_sums):
            phi.add_incoming(value, end)
        builder.cbranch(builder.icmp_signed("<", next_index, groups), loop, after)
        builder.position_at_end(after)
        for place, value in enumerate(new_sums):
            result = builder.phi(_LANES_F32)
            result.add_incoming(zero, before)
            result.add_incoming(value, end)
            new_sums[place] = result
        for place, result in enumerate(new_sums):
            builder.store(result, _pointer(builder, out, 64 * place, _LANES_F32), align=4)

    @_operation
    def multiply(typingctx, form, x, x_stride, w, groups, out):
        def codegen(ctx, builder, sig, args):
            build(builder, sig.args[0], args, getattr(ctx.codegen(), "_tm_features", ""))
            return ctx.get_dummy_value()

        return types.void(form, *[types.int64] * 5), codegen

    return multiply


def _forgotten(builder: Any, address: Any) -> Any:
    """The same address, of which the compiler does not know that it is: what is loaded there is loaded again.

    Otherwise it keeps the activations of all rows for the second half of the columns, and has no registers for them.
    """
    kind = ir.FunctionType(_I64, [_I64])
    return builder.call(ir.InlineAsm(kind, "", "=r,0"), [address])


def _ask_ahead(builder: Any, address: Any, num_bytes: int) -> None:
    pointer = _I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, locality, data = (ir.Constant(_I32, value) for value in (0, 3, 1))
    for line in range(0, num_bytes, 64):
        builder.call(function, [_pointer(builder, address, _AHEAD_BYTES + line, _I8), read, locality, data])


_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the rounded integer in the low bits of the float


@_operation
def quantise_group(typingctx, element, x, target, offset):
    """32 elements at ``x`` as activations at ``target``: codes, scale = max|x| / 127, start = -offset sum, sum.

    Codes are rint(x / scale). A group with NaN or infinity gets the scale NaN, so that what is wrong stays visible.
    """
    if not _is_element(element):
        return None

    def codegen(ctx, builder, sig, args):
        kind = sig.args[0]
        _, x, target, offset = args
        size = 2 if kind == types.uint16 else 4
        values = [_load(builder, _vector, kind, builder.add(x, ir.Constant(_I64, 16 * size * half))) for half in range(2)]
        mask = _all(_LANES_I32, 0x7FFFFFFF)
        sizes = [builder.and_(builder.bitcast(value, _LANES_I32), mask) for value in values]
        largest = _called(
            builder,
            "llvm.vector.reduce.umax.v16i32",
            _I32,
            builder.select(builder.icmp_unsigned(">", sizes[0], sizes[1]), sizes[0], sizes[1]),
        )
        top = builder.bitcast(largest, _F32)
        scale = builder.fmul(top, ir.Constant(_F32, 0.007874015718698502))
        is_tiny = builder.fcmp_unordered("<", scale, ir.Constant(_F32, 2.0**-120))
        is_bad = builder.icmp_unsigned(">=", largest, ir.Constant(_I32, 0x7F800000))
        none = ir.Constant(_F32, 0.0)
        scale = builder.select(is_tiny, none, scale)
        inverse = builder.fdiv(ir.Constant(_F32, 127.0), top)
        inverse = builder.select(builder.or_(is_tiny, is_bad), none, inverse)
        scale = builder.select(is_bad, ir.Constant(_F32, float("nan")), scale)
        by = _splat(builder, inverse, _LANES_F32)
        levels = []
        for value in values:
            clean = builder.select(_splat(builder, is_bad, ir.VectorType(ir.IntType(1), 16)), _all(_LANES_F32, 0.0), value)
            shifted = builder.fadd(builder.fmul(clean, by), _all(_LANES_F32, _ROUND))
            levels.append(builder.sub(builder.bitcast(shifted, _LANES_I32), _all(_LANES_I32, 0x4B400000)))
        for half, level in enumerate(levels):
            narrow = builder.trunc(level, ir.VectorType(_I8, 16))
            builder.store(narrow, _pointer(builder, target, 16 * half, narrow.type), align=1)
        total = _called(builder, "llvm.vector.reduce.add.v16i32", _I32, builder.add(*levels))
        start = builder.mul(total, builder.sub(ir.Constant(_I32, 0), builder.trunc(offset, _I32)))
        for at, value in (
            (_SCALE_AT, scale),
            (_START_AT, start),
            (_SUM_AT, builder.fmul(builder.sitofp(total, _F32), scale)),
        ):
            builder.store(value, _pointer(builder, target, at, value.type), align=4)
        return ctx.get_dummy_value()

    return types.void(element, types.int64, types.int64, types.int64), codegen


__all__ = [
    "ACTIVATION_BYTES",
    "COLUMNS",
    "GROUP",
    "Dot",
    "Format",
    "best_dot",
    "code_bytes",
    "code_offset",
    "format_argument",
    "quantise_group",
    "record_bytes",
    "record_size",
    "tile",
]
