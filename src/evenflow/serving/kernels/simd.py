"""A numba type that is one LLVM vector of 16 floats, and the operations kernels need on it.

Sixteen floats are one AVX-512 register; LLVM splits them on narrower machines. With this type a
kernel says which loads and multiplications it wants instead of hoping that a loop is vectorised
(loops over addresses silently are not), and needs no compiler flags.

Memory is named by integer addresses. How elements are stored is said by the *type* of an argument
called ``element``: a numpy.uint16 stands for bf16, a numpy.float32 for fp32 (see ``element_of``).
Arithmetic is always fp32.

numba does not notice a change of this file in functions it has cached in others: delete its cache after
an edit here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

LANES = 16

_FLOAT, _HALF, _INT = ir.FloatType(), ir.IntType(16), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)


class Float32x16(types.Type):
    """Sixteen floats in a register."""

    def __init__(self) -> None:
        super().__init__("float32x16")


VECTOR = Float32x16()


@register_model(Float32x16)
class _Float32x16Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def element_of(itemsize: int) -> np.uint16 | np.float32:
    """The ``element`` argument for items of 2 bytes (bf16) or 4 bytes (fp32)."""
    return np.uint16(0) if itemsize == 2 else np.float32(0)


def _operation(function: Any) -> Any:
    """numba's ``intrinsic``, of unknown type: a call inside a kernel has no typing context."""
    return intrinsic(function)


# ---- code shared by scalars and vectors: ``shape`` is a constructor of the LLVM type from its lane type


def _scalar(lane: ir.Type) -> ir.Type:
    return lane


def _vector(lane: ir.Type) -> ir.Type:
    return ir.VectorType(lane, LANES)


def _constant(shape: Any, lane: ir.Type, value: float) -> ir.Constant:
    return ir.Constant(shape(lane), value if shape is _scalar else [value] * LANES)


def _load(builder: Any, shape: Any, element: types.Type, address: Any) -> Any:
    """Load elements and widen them to fp32: a bf16 is the upper half of a float."""
    is_bf16 = element == types.uint16
    loaded_type = shape(_HALF if is_bf16 else _FLOAT)
    loaded = builder.load(builder.inttoptr(address, loaded_type.as_pointer()))
    loaded.align = 2 if is_bf16 else 4
    if not is_bf16:
        return loaded
    wide = builder.shl(builder.zext(loaded, shape(_INT)), _constant(shape, _INT, 16))
    return builder.bitcast(wide, shape(_FLOAT))


def _store(builder: Any, shape: Any, element: types.Type, address: Any, value: Any) -> None:
    """Store fp32 as elements; bf16 is rounded to nearest, ties to even, and a NaN stays one."""
    is_bf16 = element == types.uint16
    if is_bf16:
        bits = builder.bitcast(value, shape(_INT))
        odd = builder.and_(builder.lshr(bits, _constant(shape, _INT, 16)), _constant(shape, _INT, 1))
        rounded = builder.add(bits, builder.add(odd, _constant(shape, _INT, 0x7FFF)))
        is_nan = builder.fcmp_unordered("uno", value, value)
        rounded = builder.select(is_nan, _constant(shape, _INT, 0x7FC00000), rounded)
        value = builder.trunc(builder.lshr(rounded, _constant(shape, _INT, 16)), shape(_HALF))
    store = builder.store(value, builder.inttoptr(address, value.type.as_pointer()))
    store.align = 2 if is_bf16 else 4


def _call(builder: Any, name: str, *operands: Any) -> Any:
    kind = operands[0].type
    function = ir.FunctionType(kind, [kind] * len(operands))
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), operands)


def _shuffle(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(_INT, len(lanes)), lanes))


def _is_element(*candidates: Any) -> bool:
    return all(c in (types.uint16, types.float32) for c in candidates)


# ---- memory


@_operation
def itemsize(typingctx, element):
    """Bytes per element, a constant: 2 or 4."""
    if not _is_element(element):
        return None
    size = 2 if element == types.uint16 else 4
    return types.int64(element), lambda ctx, builder, sig, args: ir.Constant(ir.IntType(64), size)


@_operation
def load(typingctx, element, address):
    """16 elements at ``address``, as floats."""
    if not _is_element(element):
        return None
    return VECTOR(element, types.int64), lambda ctx, builder, sig, args: _load(builder, _vector, element, args[1])


@_operation
def load_f32(typingctx, address):
    """16 floats at ``address``."""
    return VECTOR(types.int64), lambda ctx, builder, sig, args: _load(builder, _vector, types.float32, args[0])


@_operation
def load_one(typingctx, element, address):
    """One element at ``address``, as a float."""
    if not _is_element(element):
        return None
    return types.float32(element, types.int64), lambda ctx, builder, sig, args: _load(builder, _scalar, element, args[1])


@_operation
def load_one_f32(typingctx, address):
    """The float at ``address``."""
    return types.float32(types.int64), lambda ctx, builder, sig, args: _load(builder, _scalar, types.float32, args[0])


@_operation
def load_i64(typingctx, address):
    """The int64 at ``address``."""

    def codegen(ctx, builder, sig, args):
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), codegen


@_operation
def store(typingctx, element, address, value):
    """Round 16 floats to elements at ``address``."""
    if not _is_element(element):
        return None

    def codegen(ctx, builder, sig, args):
        _store(builder, _vector, element, args[1], args[2])
        return ctx.get_dummy_value()

    return types.void(element, types.int64, VECTOR), codegen


@_operation
def store_f32(typingctx, address, value):
    """Store 16 floats at ``address``."""

    def codegen(ctx, builder, sig, args):
        _store(builder, _vector, types.float32, args[0], args[1])
        return ctx.get_dummy_value()

    return types.void(types.int64, VECTOR), codegen


@_operation
def store_one(typingctx, element, address, value):
    """Round a float to one element at ``address``."""
    if not _is_element(element):
        return None

    def codegen(ctx, builder, sig, args):
        _store(builder, _scalar, element, args[1], args[2])
        return ctx.get_dummy_value()

    return types.void(element, types.int64, types.float32), codegen


@_operation
def store_one_f32(typingctx, address, value):
    """Store a float at ``address``."""

    def codegen(ctx, builder, sig, args):
        _store(builder, _scalar, types.float32, args[0], args[1])
        return ctx.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@_operation
def prefetch(typingctx, address):
    """Ask for the cache line at ``address`` (any address is allowed) to be brought into the second-level cache."""

    def codegen(ctx, builder, sig, args):
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, locality, data = (ir.Constant(_INT, value) for value in (0, 2, 1))
        builder.call(function, [builder.inttoptr(args[0], pointer), read, locality, data])
        return ctx.get_dummy_value()

    return types.void(types.int64), codegen


# ---- arithmetic


@_operation
def zeros(typingctx):
    """Sixteen zeros."""
    return VECTOR(), lambda ctx, builder, sig, args: ir.Constant(_VECTOR, [0.0] * LANES)


@_operation
def broadcast(typingctx, value):
    """Sixteen times the float ``value``."""

    def codegen(ctx, builder, sig, args):
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        one = builder.insert_element(undefined, args[0], ir.Constant(_INT, 0))
        return _shuffle(builder, one, undefined, [0] * LANES)

    return VECTOR(types.float32), codegen


@_operation
def first_lane(typingctx, x):
    """Lane 0 of ``x``."""
    return types.float32(VECTOR), lambda ctx, builder, sig, args: builder.extract_element(args[0], ir.Constant(_INT, 0))


@_operation
def fma(typingctx, x, y, z):
    """X * y + z, rounded once."""
    return VECTOR(VECTOR, VECTOR, VECTOR), lambda ctx, builder, sig, args: _call(builder, "llvm.fma.v16f32", *args)


@_operation
def mul(typingctx, x, y):
    """X * y."""
    return VECTOR(VECTOR, VECTOR), lambda ctx, builder, sig, args: builder.fmul(*args)


@_operation
def add(typingctx, x, y):
    """X + y."""
    return VECTOR(VECTOR, VECTOR), lambda ctx, builder, sig, args: builder.fadd(*args)


@_operation
def sub(typingctx, x, y):
    """X - y."""
    return VECTOR(VECTOR, VECTOR), lambda ctx, builder, sig, args: builder.fsub(*args)


@_operation
def div(typingctx, x, y):
    """X / y."""
    return VECTOR(VECTOR, VECTOR), lambda ctx, builder, sig, args: builder.fdiv(*args)


@_operation
def minimum(typingctx, x, y):
    """The smaller of x and y, lane by lane; where x is NaN, NaN."""

    def codegen(ctx, builder, sig, args):
        x, y = args
        return builder.select(builder.fcmp_ordered("<", y, x), y, x)

    return VECTOR(VECTOR, VECTOR), codegen


def _fold(builder: Any, x: Any, width: int, combine: Any) -> Any:
    """Combine the first half of each group of ``width`` lanes with the second; half as many lanes are left."""
    low = [group + i for group in range(0, x.type.count, width) for i in range(width // 2)]
    empty = ir.Constant(x.type, ir.Undefined)
    high = _shuffle(builder, x, empty, [lane + width // 2 for lane in low])
    return combine(_shuffle(builder, x, empty, low), high)


def _fold_pair(builder: Any, x: Any, y: Any, width: int) -> Any:
    """``_fold`` by addition of x and of y into one vector: x's groups first."""
    low = [group + i for group in range(0, LANES, width) for i in range(width // 2)]
    low += [LANES + lane for lane in low]
    return builder.fadd(_shuffle(builder, x, y, low), _shuffle(builder, x, y, [lane + width // 2 for lane in low]))


@_operation
def lane_sum(typingctx, x):
    """Sum of the lanes, as a tree."""

    def codegen(ctx, builder, sig, args):
        x = args[0]
        while x.type.count > 1:
            x = _fold(builder, x, x.type.count, builder.fadd)
        return builder.extract_element(x, ir.Constant(_INT, 0))

    return types.float32(VECTOR), codegen


@_operation
def lane_max(typingctx, x):
    """Largest lane. Says nothing useful if a lane is NaN."""

    def codegen(ctx, builder, sig, args):
        def larger(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        x = args[0]
        while x.type.count > 1:
            x = _fold(builder, x, x.type.count, larger)
        return builder.extract_element(x, ir.Constant(_INT, 0))

    return types.float32(VECTOR), codegen


@_operation
def store_lane_sums(typingctx, address, a, b, c, d):
    """Store the lane sums of a, b, c and d as four floats at ``address``; half the shuffles of four ``lane_sum``.

    The tree is that of ``lane_sum``, so a sum does not depend on which of the two computed it.
    """

    def codegen(ctx, builder, sig, args):
        address, a, b, c, d = args
        ab, cd = _fold_pair(builder, a, b, 16), _fold_pair(builder, c, d, 16)
        x = _fold_pair(builder, ab, cd, 8)
        for width in (4, 2):
            x = _fold(builder, x, width, builder.fadd)
        store = builder.store(x, builder.inttoptr(address, x.type.as_pointer()))
        store.align = 4
        return ctx.get_dummy_value()

    return types.void(types.int64, VECTOR, VECTOR, VECTOR, VECTOR), codegen


# exp(x) = 2^n exp(r) with n = round(x / ln 2) and r = x - n ln 2 in [-0.35, 0.35]. ln 2 in two parts keeps r exact
# (Cody and Waite); exp(r) is its Taylor series up to r^7 / 7!, whose rest is below 6e-9.
_LOG2_E, _LN_2_HIGH, _LN_2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4
_TAYLOR = [1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0]
_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the rounded integer in the low bits of the float
_SMALLEST = -87.0  # exp of less is not a normal float


@_operation
def exp(typingctx, x):
    """exp of lanes that are at most 0; below -87 as -87; NaN stays NaN."""

    def codegen(ctx, builder, sig, args):
        def constant(value):
            return _constant(_vector, _FLOAT, float(np.float32(value)))

        def fma(*operands):
            return _call(builder, "llvm.fma.v16f32", *operands)

        x = args[0]
        # Written so that a NaN passes: the comparison is false for it.
        x = builder.select(builder.fcmp_ordered("<", x, constant(_SMALLEST)), constant(_SMALLEST), x)
        shifted = fma(x, constant(_LOG2_E), constant(_ROUND))
        n = builder.fsub(shifted, constant(_ROUND))
        r = fma(n, constant(-_LN_2_LOW), fma(n, constant(-_LN_2_HIGH), x))
        y = constant(_TAYLOR[0])
        for coefficient in _TAYLOR[1:]:
            y = fma(y, r, constant(coefficient))
        bits = builder.bitcast(shifted, _vector(_INT))
        power = builder.shl(builder.add(bits, _constant(_vector, _INT, 127)), _constant(_vector, _INT, 23))
        return builder.fmul(y, builder.bitcast(power, _VECTOR))

    return VECTOR(VECTOR), codegen
