"""Whole cache lines of elements as numba values, and their dot product: 64 bytes are 32 bf16 or 16 fp32.

A line of bf16 is multiplied as it lies, without being widened first, by the instruction that processors with avx512_bf16
have for it (twice as many multiply-adds as in fp32); elsewhere its even and odd elements are widened. Products are exact
and sums fp32 either way; they are added up in another order. See ``simd`` for ``element``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import register_model

from evenflow.serving.kernels.simd import (
    _FLOAT,
    _HALF,
    _INT,
    _VECTOR,
    LANES,
    VECTOR,
    _call,
    _fold,
    _fold_pair,
    _is_element,
    _operation,
)

LINE_BYTES = 64

_LINE = ir.VectorType(_HALF, 2 * LANES)


class Bfloat16x32(types.Type):
    """Thirty-two bf16 in a register."""

    def __init__(self) -> None:
        super().__init__("bfloat16x32")


BF16_LINE = Bfloat16x32()


@register_model(Bfloat16x32)
class _Bfloat16x32Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _LINE)


class _Bfloat(ir.types.Type):
    """LLVM's ``bfloat``, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat)

    def __hash__(self) -> int:
        return hash(_Bfloat)


def _has_dot(context: Any) -> bool:
    """True if the processor that code is made for multiplies pairs of bf16, and LLVM is one whose name for it is known."""
    return "+avx512bf16" in getattr(context.codegen(), "_tm_features", "") and binding.llvm_version_info[0] >= 18


def _halves(builder: Any, line: Any) -> tuple[Any, Any]:
    """The even and the odd elements of a line of bf16, as floats."""
    pairs = builder.bitcast(line, ir.VectorType(_INT, LANES))
    even = builder.shl(pairs, ir.Constant(pairs.type, [16] * LANES))
    odd = builder.and_(pairs, ir.Constant(pairs.type, [0xFFFF0000] * LANES))
    return builder.bitcast(even, _VECTOR), builder.bitcast(odd, _VECTOR)


def _dot_widened(builder: Any, x: Any, y: Any, sums: Any) -> Any:
    for a, b in zip(_halves(builder, x), _halves(builder, y)):
        sums = _call(builder, "llvm.fma.v16f32", a, b, sums)
    return sums


@_operation
def load_line(typingctx, element, address):
    """The 64 bytes at ``address``, any multiple of 2: 32 bf16 or 16 fp32."""
    if not _is_element(element):
        return None
    is_bf16 = element == types.uint16

    def codegen(ctx, builder, sig, args):
        line = builder.load(builder.inttoptr(args[1], (_LINE if is_bf16 else _VECTOR).as_pointer()))
        line.align = 2 if is_bf16 else 4
        return line

    return (BF16_LINE if is_bf16 else VECTOR)(element, types.int64), codegen


@_operation
def store_line(typingctx, address, line):
    """Store a line at ``address``, any multiple of 2."""
    if line not in (BF16_LINE, VECTOR):
        return None

    def codegen(ctx, builder, sig, args):
        store = builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()))
        store.align = 2
        return ctx.get_dummy_value()

    return types.void(types.int64, line), codegen


@_operation
def dot_line(typingctx, x, y, sums):
    """Sums + x * y, the products of a line of bf16 added in pairs: 16 fp32, whose sum is that of all products."""
    if x != y or x not in (BF16_LINE, VECTOR):
        return None

    def codegen(ctx, builder, sig, args):
        x, y, sums = args
        if sig.args[0] == VECTOR:
            return _call(builder, "llvm.fma.v16f32", x, y, sums)
        if not _has_dot(ctx):
            return _dot_widened(builder, x, y, sums)
        line = ir.VectorType(_Bfloat(), 2 * LANES)
        kind = ir.FunctionType(_VECTOR, [_VECTOR, line, line])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
        return builder.call(function, [sums, builder.bitcast(x, line), builder.bitcast(y, line)])

    return VECTOR(x, y, VECTOR), codegen


@_operation
def dot_line_widened(typingctx, x, y, sums):
    """The same of lines of bf16, as it is computed where there is no instruction for it."""
    if x != BF16_LINE or y != BF16_LINE:
        return None
    return VECTOR(x, y, VECTOR), lambda ctx, builder, sig, args: _dot_widened(builder, *args)


@_operation
def scatter_lane_sums(typingctx, address, apart, a, b, c, d):
    """Store the lane sums of a, b, c and d at ``address`` and 1, 2 and 3 times ``apart`` bytes behind it.

    The tree is that of ``simd.lane_sum``.
    """

    def codegen(ctx, builder, sig, args):
        address, apart, a, b, c, d = args
        ab, cd = _fold_pair(builder, a, b, 16), _fold_pair(builder, c, d, 16)
        x = _fold_pair(builder, ab, cd, 8)
        for width in (4, 2):
            x = _fold(builder, x, width, builder.fadd)
        for lane in range(4):
            store = builder.store(
                builder.extract_element(x, ir.Constant(_INT, lane)), builder.inttoptr(address, _FLOAT.as_pointer())
            )
            store.align = 4
            address = builder.add(address, apart)
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64, VECTOR, VECTOR, VECTOR, VECTOR), codegen


__all__ = [
    "BF16_LINE",
    "LINE_BYTES",
    "Bfloat16x32",
    "dot_line",
    "dot_line_widened",
    "load_line",
    "scatter_lane_sums",
    "store_line",
]
