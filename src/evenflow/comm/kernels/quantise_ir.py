"""The vector code of group-32 int8 and int4: what ``quantise_cpu``'s kernels are made of, as LLVM builders.

A whole group is one LLVM vector of 32 lanes, which every target splits into its own registers: the loops below cannot
silently stay scalar. All arguments are addresses and need no alignment.

Encoding walks over chunks of ``CHUNK`` groups, which stay in the first-level cache between its two passes. The first pass finds
the scales of sixteen groups at a time: their maxima in one tree of pairwise steps, so that no lane is idle. The second
has all inverses at hand in a table, so that nothing in it waits. Rounding adds 1.5 * 2^23 and reads the low bits, which
rounds half to even; no clamp is needed, because a bf16 scale is wrong by at most 2^-9, a quarter of a level at 127. NaN and
infinity are found by comparing absolute values as integers: they are the largest.

numba does not notice a change of this file in the functions of ``quantise_cpu`` that it has cached: touch that file after an
edit here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

GROUP = 32
BLOCK = 16
"""Groups whose scales are found side by side."""
CHUNK = 64
"""Groups between two passes: 8 KiB of fp32."""
TINY_SCALE = 2.0**-120
"""Scales below this are sent as zero: their inverse would overflow."""
_ROUND = 12582912.0
_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


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
# Sixteen floats are a table for one instruction, which reads the low four bits of its indices.
_LOOKS_UP = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))


# ---- vectors


def _vector(element: Any, lanes: int) -> Any:
    return ir.VectorType(element, lanes)


def _all(value: Any, element: Any, lanes: int = GROUP) -> Any:
    """Return a constant vector with ``value`` in all lanes."""
    return ir.Constant(_vector(element, lanes), [value] * lanes)


def _pick(builder: Any, first: Any, second: Any, lanes: Sequence[int]) -> Any:
    """Return the lanes of two vectors laid side by side."""
    return builder.shuffle_vector(first, second, ir.Constant(_vector(_I32, len(lanes)), list(lanes)))


def _split(builder: Any, x: Any) -> tuple[Any, Any]:
    """Return the first and the second half of the lanes."""
    half = x.type.count // 2
    return _pick(builder, x, x, range(half)), _pick(builder, x, x, range(half, 2 * half))


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    """Repeat a scalar in all lanes."""
    one = builder.insert_element(ir.Constant(_vector(value.type, lanes), ir.Undefined), value, ir.Constant(_I32, 0))
    return _pick(builder, one, one, [0] * lanes)


def _at(builder: Any, address: Any, offset: int, element: Any) -> Any:
    """Return ``address`` + ``offset`` as a pointer to ``element``."""
    return builder.inttoptr(builder.add(address, ir.Constant(address.type, offset)), element.as_pointer())


def _moved(builder: Any, address: Any, index: Any, item_bytes: int) -> Any:
    """Return the address of item ``index`` (an integer or an LLVM value)."""
    if isinstance(index, int):
        return builder.add(address, ir.Constant(address.type, index * item_bytes))
    return builder.add(address, builder.mul(index, ir.Constant(index.type, item_bytes)))


def _load(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    return builder.load(_at(builder, address, offset, kind), align=1)


def _store(builder: Any, value: Any, address: Any, offset: int = 0) -> None:
    builder.store(value, _at(builder, address, offset, value.type), align=1)


def _maximum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_unsigned(">", a, b), a, b)


def _bf16_bits(builder: Any, values: Any) -> Any:
    """Round float32 values to bf16 bit patterns (i16), half to even."""
    lanes = values.type.count
    bits = builder.bitcast(values, _vector(_I32, lanes))
    odd = builder.and_(builder.lshr(bits, _all(16, _I32, lanes)), _all(1, _I32, lanes))
    rounded = builder.add(bits, builder.add(odd, _all(0x7FFF, _I32, lanes)))
    return builder.trunc(builder.lshr(rounded, _all(16, _I32, lanes)), _vector(_I16, lanes))


def _widen(builder: Any, bits: Any) -> Any:
    """Return bf16 bit patterns as float32 values."""
    lanes = bits.type.count
    wide = builder.shl(builder.zext(bits, _vector(_I32, lanes)), _all(16, _I32, lanes))
    return builder.bitcast(wide, _vector(_F32, lanes))


def _narrow(builder: Any, values: Any) -> Any:
    """Round 32 float32 values to bf16."""
    if not _ROUNDS_IN_HARDWARE:
        return _bf16_bits(builder, values)
    low, high = _split(builder, values)
    kind = ir.FunctionType(_vector(_BFloat16(), GROUP), [low.type, low.type])
    name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [high, low])


# ---- encoding


def _halve(builder: Any, a: Any, b: Any) -> Any:
    """Return the maxima of neighbouring lanes of a, then of b."""
    lanes = range(2 * a.type.count)
    return _maximum(builder, _pick(builder, a, b, lanes[::2]), _pick(builder, a, b, lanes[1::2]))


def _maxima(builder: Any, x: Any, count: int, is_wide: bool) -> Any:
    """Return the patterns [count] (i32) of the largest magnitudes of ``count`` groups, a power of two."""
    vectors = []
    for g in range(count):
        if is_wide:
            pattern = _load(builder, x, 128 * g, _vector(_I32, GROUP))
            vectors.append(_maximum(builder, *_split(builder, builder.and_(pattern, _all(0x7FFFFFFF, _I32)))))
        else:
            pattern = _load(builder, x, 64 * g, _vector(_I16, GROUP))
            vectors.append(builder.and_(pattern, _all(0x7FFF, _I16)))
    while len(vectors) > 1:
        vectors = [_halve(builder, a, b) for a, b in zip(vectors[::2], vectors[1::2])]
    found = vectors[0]
    while found.type.count > count:
        lanes = range(found.type.count)
        found = _maximum(builder, *(_pick(builder, found, found, lanes[first::2]) for first in (0, 1)))
    if is_wide:
        return found
    return builder.shl(builder.zext(found, _vector(_I32, count)), _all(16, _I32, count))


def _scale_groups(builder: Any, addresses: Sequence[Any], bits: int, is_wide: bool, count: int) -> Any:
    """Write the scales (bf16) and inverses (fp32) of ``count`` groups at the addresses of x, scales and inverses.

    Return i32, nonzero if a group is not finite; its scale is NaN.
    """
    x, scales, inverses = addresses
    largest = _maxima(builder, x, count, is_wide)
    is_bad = builder.icmp_unsigned(">=", largest, _all(0x7F800000, _I32, count))
    exact = builder.fdiv(builder.bitcast(largest, _vector(_F32, count)), _all(float(2 ** (bits - 1) - 1), _F32, count))
    narrow = _bf16_bits(builder, exact)
    scale = _widen(builder, narrow)
    is_tiny = builder.fcmp_ordered("<", scale, _all(TINY_SCALE, _F32, count))
    inverse = builder.fdiv(_all(1.0, _F32, count), scale)
    inverse = builder.select(builder.or_(is_tiny, is_bad), _all(0.0, _F32, count), inverse)
    narrow = builder.select(is_tiny, _all(0, _I16, count), narrow)
    narrow = builder.select(is_bad, _all(0x7FC0, _I16, count), narrow)
    _store(builder, narrow, scales)
    _store(builder, inverse, inverses)
    return builder.zext(builder.bitcast(is_bad, ir.IntType(count)), _I32)


def _levels(builder: Any, values: Any, inverse: Any, bits: int) -> Any:
    """Return fp32 values [n] times the scalar ``inverse``, rounded, as i32 of which only the low ``bits`` count."""
    lanes = values.type.count
    magic = _ROUND if bits == 8 else _ROUND + 8.0
    scaled = builder.fmul(values, _splat(builder, inverse, lanes))
    return builder.bitcast(builder.fadd(scaled, _all(magic, _F32, lanes)), _vector(_I32, lanes))


def _join_nibbles(builder: Any, low: Any, high: Any) -> Any:
    """Return i32 lanes whose low byte is a nibble of ``low`` and, above it, one of ``high``."""
    lanes = low.type.count
    return builder.or_(builder.and_(low, _all(15, _I32, lanes)), builder.shl(high, _all(4, _I32, lanes)))


def _code_group(builder: Any, addresses: Sequence[Any], bits: int, is_wide: bool) -> None:
    """Write the codes of the group at the addresses of x, codes and inverse."""
    x, codes, inverses = addresses
    if is_wide:
        values = _load(builder, x, 0, _vector(_F32, GROUP))
    else:
        values = _widen(builder, _load(builder, x, 0, _vector(_I16, GROUP)))
    level = _levels(builder, values, _load(builder, inverses, 0, _F32), bits)
    if bits == 4:
        level = _join_nibbles(builder, *_split(builder, level))
    _store(builder, builder.trunc(level, _vector(_I8, 4 * bits)), codes)


def _low_words(builder: Any, low: Any, high: Any) -> Any:
    """Return the lower words of two vectors [16] of i32, i16 [32]."""
    low, high = (builder.bitcast(half, _vector(_I16, 32)) for half in (low, high))
    return _pick(builder, low, high, range(0, 64, 2))


def _low_bytes(builder: Any, low: Any, high: Any) -> Any:
    """Return the lower bytes of two vectors [32] of i16, i8 [64]."""
    low, high = (builder.bitcast(half, _vector(_I8, 64)) for half in (low, high))
    return _pick(builder, low, high, range(0, 128, 2))


def _codes_of_fp32(builder: Any, x: Any, inverses: Any, bits: int) -> Any:
    """Return 64 bytes of codes, i8 [64], of two groups (int8) or four (int4) of fp32."""
    quarters: list[Any] = []
    for g in range(16 // bits):
        values = _load(builder, x, 128 * g, _vector(_F32, GROUP))
        halves = _split(builder, _levels(builder, values, _load(builder, inverses, 4 * g, _F32), bits))
        quarters += halves if bits == 8 else [_join_nibbles(builder, *halves)]
    return _low_bytes(builder, _low_words(builder, *quarters[:2]), _low_words(builder, *quarters[2:]))


def _levels_of_bf16(builder: Any, x: Any, inverses: Any, bits: int) -> Any:
    """Return the levels, i8 [64], of two groups of bf16. Even and odd entries are widened apart: a shift here, a mask there."""
    even, odd = [], []
    for g in (0, 1):
        pairs, inverse = _load(builder, x, 64 * g, _vector(_I32, 16)), _load(builder, inverses, 4 * g, _F32)
        lower, upper = builder.shl(pairs, _all(16, _I32, 16)), builder.and_(pairs, _all(0xFFFF0000, _I32, 16))
        even.append(_levels(builder, builder.bitcast(lower, _vector(_F32, 16)), inverse, bits))
        odd.append(_levels(builder, builder.bitcast(upper, _vector(_F32, 16)), inverse, bits))
    low = builder.and_(_low_words(builder, *even), _all(0xFF, _I16))
    high = builder.shl(_low_words(builder, *odd), _all(8, _I16))
    return builder.bitcast(builder.or_(low, high), _vector(_I8, 64))


def _codes_of_bf16(builder: Any, x: Any, inverses: Any, bits: int) -> Any:
    """Return 64 bytes of codes, i8 [64], of two groups (int8) or four (int4) of bf16."""
    first = _levels_of_bf16(builder, x, inverses, bits)
    if bits == 8:
        return first
    second = _levels_of_bf16(builder, _moved(builder, x, 2, 64), _moved(builder, inverses, 2, 4), bits)
    halves = [[GROUP * g + half + i for g in range(4) for i in range(16)] for half in (0, 16)]
    low, high = (builder.bitcast(_pick(builder, first, second, half), _vector(_I16, 32)) for half in halves)
    low = builder.and_(low, _all(0x0F0F, _I16))
    high = builder.and_(builder.shl(high, _all(4, _I16)), _all(0xF0F0, _I16))
    return builder.bitcast(builder.or_(low, high), _vector(_I8, 64))


def _code_block(builder: Any, addresses: Sequence[Any], bits: int, is_wide: bool) -> None:
    """Write the codes of ``BLOCK`` groups at the addresses of x, codes and inverses, 64 bytes at a time."""
    x, codes, inverses = addresses
    codes_of = _codes_of_fp32 if is_wide else _codes_of_bf16
    for g in range(0, BLOCK, 16 // bits):
        at_x, at_inverse = _moved(builder, x, g, 128 if is_wide else 64), _moved(builder, inverses, g, 4)
        _store(builder, codes_of(builder, at_x, at_inverse, bits), codes, g * 4 * bits)


# ---- decoding


def _nibble_values(builder: Any, codes: Any, scale: Any) -> Any:
    """Return the 32 values of the int4 group at ``codes``."""
    byte = _load(builder, codes, 0, _vector(_I8, 16))
    if not _LOOKS_UP:
        low, high = builder.and_(byte, _all(15, _I8, 16)), builder.lshr(byte, _all(4, _I8, 16))
        wide = builder.zext(_pick(builder, low, high, range(GROUP)), _vector(_I32, GROUP))
        levels = builder.sitofp(builder.sub(wide, _all(8, _I32)), _vector(_F32, GROUP))
        return builder.fmul(levels, _splat(builder, scale, GROUP))
    table = builder.fmul(ir.Constant(_vector(_F32, 16), [float(level) for level in range(-8, 8)]), _splat(builder, scale, 16))
    index = builder.zext(byte, _vector(_I32, 16))
    kind = ir.FunctionType(table.type, [table.type, index.type])
    look_up = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.permvar.sf.512")
    low, high = (builder.call(look_up, [table, i]) for i in (index, builder.lshr(index, _all(4, _I32, 16))))
    return _pick(builder, low, high, range(GROUP))


def _decode_group(builder: Any, addresses: Sequence[Any], bits: int, is_wide: bool, adds: bool) -> None:
    """Decode the group at the addresses of codes and (widened) scale to the address of out, or add it there."""
    codes, scales, out = addresses
    scale = _load(builder, scales, 0, _F32)
    if bits == 8:
        levels = builder.sext(_load(builder, codes, 0, _vector(_I8, GROUP)), _vector(_I32, GROUP))
        values = builder.fmul(builder.sitofp(levels, _vector(_F32, GROUP)), _splat(builder, scale, GROUP))
    else:
        values = _nibble_values(builder, codes, scale)
    if adds:
        values = builder.fadd(_load(builder, out, 0, _vector(_F32, GROUP)), values)
    elif not is_wide:
        values = _narrow(builder, values)
    _store(builder, values, out)


# ---- loops


def _each(
    builder: Any, start: Any, stop: Any, step: int, addresses: Sequence[tuple[Any, int]], body: Callable[[list[Any]], None]
) -> None:
    """Call ``body`` with the addresses, given with their bytes per group, moved to every ``step``-th group."""
    with cgutils.for_range_slice(builder, start, stop, ir.Constant(start.type, step), start.type) as (g, _):
        body([_moved(builder, address, g, size) for address, size in addresses])


def _in_chunks(builder: Any, groups: Any, body: Callable[[Any, Any], None]) -> None:
    """Call ``body`` with the first group and the number of groups of every chunk."""
    size = ir.Constant(groups.type, CHUNK)
    with cgutils.for_range_slice(builder, ir.Constant(groups.type, 0), groups, size, groups.type) as (first, _):
        rest = builder.sub(groups, first)
        body(first, builder.select(builder.icmp_signed("<", rest, size), rest, size))


def _table(builder: Any) -> Any:
    """Return the address of a float per group of a chunk, on the stack."""
    return builder.ptrtoint(cgutils.alloca_once(builder, ir.ArrayType(_F32, CHUNK)), _I64)


def encoder(bits: int, is_wide: bool) -> Any:
    """Return the intrinsic (addresses of x, codes, scales; number of groups) -> nonzero if a group is not finite."""
    x_bytes, code_bytes = GROUP * (4 if is_wide else 2), GROUP * bits // 8

    @intrinsic
    def encode(typingctx: Any, x: Any, codes: Any, scales: Any, groups: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            *addresses, groups = args
            inverses = _table(builder)
            bad = cgutils.alloca_once_value(builder, ir.Constant(_I32, 0))
            none = ir.Constant(groups.type, 0)

            def chunk(first: Any, count: Any) -> None:
                x, codes, scales = (
                    _moved(builder, address, first, size) for address, size in zip(addresses, (x_bytes, code_bytes, 2))
                )

                def scale(at_once: int) -> Callable[[list[Any]], None]:
                    def body(at: list[Any]) -> None:
                        found = _scale_groups(builder, at, bits, is_wide, at_once)
                        builder.store(builder.or_(builder.load(bad), found), bad)

                    return body

                places = [(x, x_bytes), (scales, 2), (inverses, 4)]
                blocks = builder.and_(count, ir.Constant(count.type, -BLOCK))
                _each(builder, none, blocks, BLOCK, places, scale(BLOCK))
                _each(builder, blocks, count, 1, places, scale(1))
                places = [(x, x_bytes), (codes, code_bytes), (inverses, 4)]
                _each(builder, none, blocks, BLOCK, places, lambda at: _code_block(builder, at, bits, is_wide))
                _each(builder, blocks, count, 1, places, lambda at: _code_group(builder, at, bits, is_wide))

            _in_chunks(builder, groups, chunk)
            return builder.load(bad)

        return types.uint32(types.intp, types.intp, types.intp, types.intp), codegen

    return encode


def decoder(bits: int, is_wide: bool, adds: bool = False) -> Any:
    """Return the intrinsic (addresses of codes, scales, out; number of groups)."""
    code_bytes, out_bytes = GROUP * bits // 8, GROUP * (4 if is_wide else 2)

    @intrinsic
    def decode(typingctx: Any, codes: Any, scales: Any, out: Any, groups: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            *addresses, groups = args
            wide_scales = _table(builder)
            none = ir.Constant(groups.type, 0)

            def widen(at: list[Any]) -> None:
                bits = builder.zext(_load(builder, at[0], 0, _I16), _I32)
                _store(builder, builder.shl(bits, ir.Constant(_I32, 16)), at[1])

            def chunk(first: Any, count: Any) -> None:
                codes, scales, out = (
                    _moved(builder, address, first, size) for address, size in zip(addresses, (code_bytes, 2, out_bytes))
                )
                _each(builder, none, count, 1, [(scales, 2), (wide_scales, 4)], widen)
                places = [(codes, code_bytes), (wide_scales, 4), (out, out_bytes)]
                _each(builder, none, count, 1, places, lambda at: _decode_group(builder, at, bits, is_wide, adds))

            _in_chunks(builder, groups, chunk)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp, types.intp), codegen

    return decode
