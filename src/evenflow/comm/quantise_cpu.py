"""Fused CPU kernels for group-32 int8 and int4: one pass over the tensor to encode, one to decode.

Semantics, for a group of 32 with scale s = bf16(max|x| / top), 0 if tiny: code = rint(x / s); x' = code * s. int8 codes are
two's complement bytes; int4 codes are offset by 8, the first sixteen of a group in the low nibbles, the others in the
high. Knows only flat tensors; ``quantise`` is the caller and its torch code the oracle, bit for bit.

A whole group is one LLVM vector of 32 lanes, which every target splits into its own registers: the loops below cannot
silently stay scalar. Encoding takes sixteen groups at a time: their maxima are found in one tree of pairwise steps and
their scales computed side by side. Rounding adds 1.5 * 2^23 and reads the low bits, which rounds half to even; no clamp is
needed, because a bf16 scale is wrong by at most 2^-9, a quarter of a level at 127. NaN and infinity are found by comparing
absolute values as integers: they are the largest. All arguments are addresses and need no alignment.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)
GROUP = 32
BLOCK = 16
"""Groups that are encoded side by side."""
PIECE = 8192
"""Groups that one thread takes at a time, 256 Ki elements; fewer than two such pieces are not worth a second thread."""
_ROUND = 12582912.0
_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


class _BFloat16(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


# One instruction where the CPU has it. It takes denormal numbers for zero, of which a scale of 2^-120 or more leaves none.
_ROUNDS_IN_HARDWARE = bool(llvmlite.binding.get_host_cpu_features().get("avx512bf16"))


def _vector(element: Any, lanes: int) -> Any:
    return ir.VectorType(element, lanes)


def _pick(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    """Return the lanes of two vectors laid side by side."""
    return builder.shuffle_vector(first, second, ir.Constant(_vector(_I32, len(lanes)), lanes))


def _all(value: Any, element: Any, lanes: int = GROUP) -> Any:
    """Return a constant vector with ``value`` in all lanes."""
    return ir.Constant(_vector(element, lanes), [value] * lanes)


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    """Repeat a scalar in all lanes."""
    one = builder.insert_element(ir.Constant(_vector(value.type, lanes), ir.Undefined), value, ir.Constant(_I32, 0))
    return _pick(builder, one, one, [0] * lanes)


def _at(builder: Any, address: Any, offset: int, element: Any) -> Any:
    """Return ``address`` + ``offset`` as a pointer to ``element``."""
    return builder.inttoptr(builder.add(address, ir.Constant(address.type, offset)), element.as_pointer())


def _maximum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_unsigned(">", a, b), a, b)


def _bf16_bits(builder: Any, values: Any, lanes: int) -> Any:
    """Round float32 values to bf16 bit patterns (i16), half to even."""
    bits = builder.bitcast(values, _vector(_I32, lanes))
    odd = builder.and_(builder.lshr(bits, _all(16, _I32, lanes)), _all(1, _I32, lanes))
    rounded = builder.add(bits, builder.add(odd, _all(0x7FFF, _I32, lanes)))
    return builder.trunc(builder.lshr(rounded, _all(16, _I32, lanes)), _vector(_I16, lanes))


def _widen(builder: Any, bits: Any, lanes: int) -> Any:
    """Return bf16 bit patterns as float32 values."""
    wide = builder.shl(builder.zext(bits, _vector(_I32, lanes)), _all(16, _I32, lanes))
    return builder.bitcast(wide, _vector(_F32, lanes))


def _maxima(builder: Any, x: Any, count: int, is_wide: bool) -> Any:
    """Return the patterns [count] (i32) of the largest magnitudes of ``count`` groups, a power of two."""
    vectors = []
    for g in range(count):
        if is_wide:
            pattern = builder.load(_at(builder, x, 128 * g, _vector(_I32, GROUP)), align=1)
            absolute = builder.and_(pattern, _all(0x7FFFFFFF, _I32))
            low, high = (_pick(builder, absolute, absolute, list(range(i, i + 16))) for i in (0, 16))
            vectors.append(_maximum(builder, low, high))
        else:
            pattern = builder.load(_at(builder, x, 64 * g, _vector(_I16, GROUP)), align=1)
            vectors.append(builder.and_(pattern, _all(0x7FFF, _I16)))
    lanes = 16 if is_wide else GROUP

    def halve(a: Any, b: Any, width: int) -> Any:
        even, odd = (_pick(builder, a, b, list(range(first, 2 * width, 2))) for first in (0, 1))
        return _maximum(builder, even, odd)

    while len(vectors) > 1:
        vectors = [halve(a, b, lanes) for a, b in zip(vectors[::2], vectors[1::2])]
    found = vectors[0]
    while lanes > count:
        even, odd = (_pick(builder, found, found, list(range(first, lanes, 2))) for first in (0, 1))
        found, lanes = _maximum(builder, even, odd), lanes // 2
    if is_wide:
        return found
    return builder.shl(builder.zext(found, _vector(_I32, count)), _all(16, _I32, count))


def _encode_groups(builder: Any, addresses: tuple[Any, Any, Any], bits: int, is_wide: bool, count: int) -> Any:
    """Encode ``count`` groups at the addresses of x, codes and scales; return i32, nonzero if a group is not finite."""
    x, codes, scales = addresses
    largest = _maxima(builder, x, count, is_wide)
    is_bad = builder.icmp_unsigned(">=", largest, _all(0x7F800000, _I32, count))
    exact = builder.fdiv(builder.bitcast(largest, _vector(_F32, count)), _all(float(2 ** (bits - 1) - 1), _F32, count))
    narrow = _bf16_bits(builder, exact, count)
    scale = _widen(builder, narrow, count)
    is_tiny = builder.fcmp_ordered("<", scale, _all(2.0**-120, _F32, count))
    inverse = builder.fdiv(_all(1.0, _F32, count), scale)
    inverse = builder.select(builder.or_(is_tiny, is_bad), _all(0.0, _F32, count), inverse)
    narrow = builder.select(is_tiny, _all(0, _I16, count), narrow)
    narrow = builder.select(is_bad, _all(0x7FC0, _I16, count), narrow)
    builder.store(narrow, _at(builder, scales, 0, narrow.type), align=1)
    for g in range(count):
        if is_wide:
            value = builder.load(_at(builder, x, 128 * g, _vector(_F32, GROUP)), align=1)
        else:
            value = _widen(builder, builder.load(_at(builder, x, 64 * g, _vector(_I16, GROUP)), align=1), GROUP)
        scaled = builder.fmul(value, _pick(builder, inverse, inverse, [g] * GROUP))
        magic = _ROUND if bits == 8 else _ROUND + 8.0
        level = builder.bitcast(builder.fadd(scaled, _all(magic, _F32)), _vector(_I32, GROUP))
        if bits == 4:
            low, high = (_pick(builder, level, level, list(range(i, i + 16))) for i in (0, 16))
            low = builder.and_(low, _all(15, _I32, 16))
            level = builder.or_(low, builder.shl(high, _all(4, _I32, 16)))
        byte = builder.trunc(level, _vector(_I8, 4 * bits))
        builder.store(byte, _at(builder, codes, 4 * bits * g, byte.type), align=1)
    return builder.zext(builder.bitcast(is_bad, ir.IntType(count)), _I32)


def _decode_group(builder: Any, addresses: tuple[Any, Any, Any], bits: int, is_wide: bool, adds: bool) -> None:
    """Decode the group at the addresses of codes and scale to the address of out, or add it there."""
    codes, scale, out = addresses
    byte = builder.load(_at(builder, codes, 0, _vector(_I8, 4 * bits)), align=1)
    if bits == 8:
        levels = builder.sext(byte, _vector(_I32, GROUP))
    else:
        low, high = builder.and_(byte, _all(15, _I8, 16)), builder.lshr(byte, _all(4, _I8, 16))
        both = _pick(builder, low, high, list(range(GROUP)))
        levels = builder.sub(builder.zext(both, _vector(_I32, GROUP)), _all(8, _I32))
    short = builder.load(_at(builder, scale, 0, _I16), align=1)
    wide_scale = builder.bitcast(builder.shl(builder.zext(short, _I32), ir.Constant(_I32, 16)), _F32)
    values = builder.fmul(builder.sitofp(levels, _vector(_F32, GROUP)), _splat(builder, wide_scale, GROUP))
    target = _at(builder, out, 0, _vector(_F32, GROUP))
    if adds:
        values = builder.fadd(builder.load(target, align=1), values)
    elif not is_wide:
        values = (
            builder.fptrunc(values, _vector(_BFloat16(), GROUP)) if _ROUNDS_IN_HARDWARE else _bf16_bits(builder, values, GROUP)
        )
    builder.store(values, _at(builder, out, 0, values.type), align=1)


def _moved(builder: Any, address: Any, group: Any, group_bytes: int) -> Any:
    return builder.add(address, builder.mul(group, ir.Constant(group.type, group_bytes)))


def _encoder(bits: int, is_wide: bool) -> Any:
    """Return the intrinsic (addresses of x, codes, scales; number of groups) -> nonzero if a group is not finite."""
    sizes = (GROUP * (4 if is_wide else 2), GROUP * bits // 8, 2)

    @intrinsic
    def encode(typingctx: Any, x: Any, codes: Any, scales: Any, groups: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            *addresses, groups = args
            bad = cgutils.alloca_once_value(builder, ir.Constant(_I32, 0))
            whole = builder.and_(groups, ir.Constant(groups.type, -BLOCK))
            for start, stop, count in ((ir.Constant(groups.type, 0), whole, BLOCK), (whole, groups, 1)):
                with cgutils.for_range_slice(builder, start, stop, ir.Constant(groups.type, count), groups.type) as (g, _):
                    at = [_moved(builder, address, g, size) for address, size in zip(addresses, sizes)]
                    found = _encode_groups(builder, (at[0], at[1], at[2]), bits, is_wide, count)
                    builder.store(builder.or_(builder.load(bad), found), bad)
            return builder.load(bad)

        return types.uint32(types.intp, types.intp, types.intp, types.intp), codegen

    return encode


def _decoder(bits: int, is_wide: bool, adds: bool = False) -> Any:
    """Return the intrinsic (addresses of codes, scales, out; number of groups)."""
    sizes = (GROUP * bits // 8, 2, GROUP * (4 if is_wide else 2))

    @intrinsic
    def decode(typingctx: Any, codes: Any, scales: Any, out: Any, groups: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            *addresses, groups = args
            with cgutils.for_range(builder, groups) as loop:
                at = [_moved(builder, address, loop.index, size) for address, size in zip(addresses, sizes)]
                _decode_group(builder, (at[0], at[1], at[2]), bits, is_wide, adds)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp, types.intp), codegen

    return decode


_E8F, _E8B, _E4F, _E4B = _encoder(8, True), _encoder(8, False), _encoder(4, True), _encoder(4, False)
_D8F, _D8B, _D4F, _D4B = _decoder(8, True), _decoder(8, False), _decoder(4, True), _decoder(4, False)
_A8F, _A4F = _decoder(8, True, adds=True), _decoder(4, True, adds=True)


@numba.njit(nogil=True, cache=True)
def _encode(x, codes, scales, groups, bits, is_wide):  # type: ignore[no-untyped-def]
    if bits == 8:
        return _E8F(x, codes, scales, groups) if is_wide else _E8B(x, codes, scales, groups)
    return _E4F(x, codes, scales, groups) if is_wide else _E4B(x, codes, scales, groups)


@numba.njit(nogil=True, cache=True)
def _decode(codes, scales, out, groups, bits, is_wide, adds):  # type: ignore[no-untyped-def]
    if adds:
        if bits == 8:
            _A8F(codes, scales, out, groups)
        else:
            _A4F(codes, scales, out, groups)
    elif bits == 8:
        if is_wide:
            _D8F(codes, scales, out, groups)
        else:
            _D8B(codes, scales, out, groups)
    elif is_wide:
        _D4F(codes, scales, out, groups)
    else:
        _D4B(codes, scales, out, groups)


@numba.njit(nogil=True, cache=True, parallel=True)
def _encode_parallel(x, codes, scales, groups, bits, is_wide):  # type: ignore[no-untyped-def]
    bad = 0
    in_bytes = 128 if is_wide else 64
    for piece in numba.prange(-(-groups // PIECE)):
        g = piece * PIECE
        count = min(PIECE, groups - g)
        bad += _encode(x + g * in_bytes, codes + g * 4 * bits, scales + g * 2, count, bits, is_wide) != 0
    return bad


@numba.njit(nogil=True, cache=True, parallel=True)
def _decode_parallel(codes, scales, out, groups, bits, is_wide, adds):  # type: ignore[no-untyped-def]
    out_bytes = 128 if is_wide else 64
    for piece in numba.prange(-(-groups // PIECE)):
        g = piece * PIECE
        count = min(PIECE, groups - g)
        _decode(codes + g * 4 * bits, scales + g * 2, out + g * out_bytes, count, bits, is_wide, adds)


def can_take(x: Tensor) -> bool:
    """Return whether the kernels encode this tensor: on the CPU, contiguous, fp32 or bf16."""
    return x.device.type == "cpu" and x.dtype in DTYPES and x.is_contiguous()


def encode(x: Tensor, message: Tensor, bits: int) -> bool:
    """Encode flat ``x`` (fp32 or bf16) into contiguous ``message`` (uint8, exactly sized); return whether all of x is finite.

    A group with NaN or infinity gets the scale NaN.
    """
    n, code_bytes = x.numel(), GROUP * bits // 8
    whole, groups = n // GROUP, -(-n // GROUP)
    is_wide = x.dtype == torch.float32
    codes = message.data_ptr()
    scales = codes + groups * code_bytes
    run = _encode_parallel if _is_worth_threads(whole) else _encode
    bad = run(x.data_ptr(), codes, scales, whole, bits, is_wide) if whole else 0
    if whole < groups:
        tail = x.new_zeros(GROUP)
        tail[: n - whole * GROUP] = x[whole * GROUP :]
        bad |= _encode(tail.data_ptr(), codes + whole * code_bytes, scales + whole * 2, 1, bits, is_wide)
    return not bad


def _run_decode(message: Tensor, out: Tensor, bits: int, adds: bool) -> None:
    n, code_bytes = out.numel(), GROUP * bits // 8
    whole, groups = n // GROUP, -(-n // GROUP)
    is_wide = out.dtype == torch.float32
    codes = message.data_ptr()
    scales = codes + groups * code_bytes
    run = _decode_parallel if _is_worth_threads(whole) else _decode
    if whole:
        run(codes, scales, out.data_ptr(), whole, bits, is_wide, adds)
    if whole < groups:
        tail = out.new_zeros(GROUP)
        rest = n - whole * GROUP
        tail[:rest] = out[whole * GROUP :]
        _decode(codes + whole * code_bytes, scales + whole * 2, tail.data_ptr(), 1, bits, is_wide, adds)
        out[whole * GROUP :] = tail[:rest]


def _is_worth_threads(groups: int) -> bool:
    return groups >= 2 * PIECE and torch.get_num_threads() > 1


def decode(message: Tensor, out: Tensor, bits: int) -> None:
    """Decode contiguous ``message`` into flat ``out`` (fp32 or bf16)."""
    _run_decode(message, out, bits, adds=False)


def add_decoded(message: Tensor, total: Tensor, bits: int) -> None:
    """Add the decoded message to flat fp32 ``total`` in place."""
    _run_decode(message, total, bits, adds=True)
