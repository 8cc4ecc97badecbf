"""Fused CPU kernels for group-32 int8 and int4: one pass over the tensor to encode, one to decode.

Semantics, for a group of 32 with scale s = bf16(max|x| / top), 0 if tiny: code = rint(x / s); x' = code * s. int8 codes are
two's complement bytes; int4 codes are offset by 8, the first sixteen of a group in the low nibbles, the others in the
high. Knows only flat tensors; ``quantise`` is the caller and its torch code the oracle, bit for bit.

A whole group is one LLVM vector of 32 lanes, which every target splits into its own registers: the loops below cannot
silently stay scalar. Rounding adds 1.5 * 2^23 and reads the low bits, which rounds half to even; no clamp is needed,
because a bf16 scale is wrong by at most 2^-9, a quarter of a level at 127. NaN and infinity are found by comparing
absolute values as integers: they are the largest.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)
GROUP = 32
_ROUND = 12582912.0
_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    """Repeat a scalar in all lanes."""
    vector = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _all(value: Any, element: Any, lanes: int = GROUP) -> Any:
    """Return a constant vector with ``value`` in all lanes."""
    return ir.Constant(ir.VectorType(element, lanes), [value] * lanes)


def _half(builder: Any, vector: Any, which: int) -> Any:
    """Return the first or second sixteen lanes."""
    lanes = ir.Constant(ir.VectorType(_I32, 16), list(range(16 * which, 16 * which + 16)))
    return builder.shuffle_vector(vector, vector, lanes)


def _pointer(builder: Any, address: Any, element: Any, lanes: int) -> Any:
    return builder.inttoptr(address, ir.VectorType(element, lanes).as_pointer())


def _bf16_bits(builder: Any, bits: Any, lanes: int) -> Any:
    """Round float32 bit patterns (i32, scalar if lanes is 0) to bf16 bit patterns (i16), half to even."""

    def constant(value: int) -> Any:
        return _all(value, _I32, lanes) if lanes else ir.Constant(_I32, value)

    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.add(bits, builder.add(odd, constant(0x7FFF)))
    return builder.trunc(builder.lshr(rounded, constant(16)), ir.VectorType(_I16, lanes) if lanes else _I16)


def _encode_group(bits: int, is_wide: bool) -> Any:
    """Return the intrinsic (address of x, address of codes) -> bf16 bits of the scale, for one group."""
    top = float(2 ** (bits - 1) - 1)

    @intrinsic
    def encode_group(typingctx: Any, x: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            v32i, v32f = ir.VectorType(_I32, GROUP), ir.VectorType(_F32, GROUP)
            if is_wide:
                pattern = builder.load(_pointer(builder, args[0], _I32, GROUP), align=4)
            else:
                short = builder.load(_pointer(builder, args[0], _I16, GROUP), align=2)
                pattern = builder.shl(builder.zext(short, v32i), _all(16, _I32))
            absolute = builder.and_(pattern, _all(0x7FFFFFFF, _I32))
            reduce_max = ir.FunctionType(_I32, [v32i])
            umax = builder.module.declare_intrinsic("llvm.vector.reduce.umax.v32i32", (), reduce_max)
            largest = builder.call(umax, [absolute])
            is_bad = builder.icmp_unsigned(">=", largest, ir.Constant(_I32, 0x7F800000))
            exact = builder.fdiv(builder.bitcast(largest, _F32), ir.Constant(_F32, top))
            narrow = _bf16_bits(builder, builder.bitcast(exact, _I32), 0)
            scale = builder.bitcast(builder.shl(builder.zext(narrow, _I32), ir.Constant(_I32, 16)), _F32)
            is_tiny = builder.fcmp_ordered("<", scale, ir.Constant(_F32, 2.0**-120))
            inverse = builder.fdiv(ir.Constant(_F32, 1.0), scale)
            inverse = builder.select(builder.or_(is_tiny, is_bad), ir.Constant(_F32, 0.0), inverse)
            narrow = builder.select(is_tiny, ir.Constant(_I16, 0), narrow)
            narrow = builder.select(is_bad, ir.Constant(_I16, 0x7FC0), narrow)
            scaled = builder.fmul(builder.bitcast(pattern, v32f), _splat(builder, inverse, GROUP))
            magic = _ROUND if bits == 8 else _ROUND + 8.0
            codes = builder.bitcast(builder.fadd(scaled, _all(magic, _F32)), v32i)
            if bits == 8:
                packed, lanes = codes, GROUP
            else:
                low = builder.and_(_half(builder, codes, 0), _all(15, _I32, 16))
                packed, lanes = builder.or_(low, builder.shl(_half(builder, codes, 1), _all(4, _I32, 16))), 16
            byte = builder.trunc(packed, ir.VectorType(_I8, lanes))
            builder.store(byte, _pointer(builder, args[1], _I8, lanes), align=1)
            return narrow

        return types.uint16(types.intp, types.intp), codegen

    return encode_group


def _decode_group(bits: int, is_wide: bool, adds: bool) -> Any:
    """Return the intrinsic (address of codes, bf16 bits of the scale, address of out), for one group."""

    @intrinsic
    def decode_group(typingctx: Any, codes: Any, scale: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            v32i, v32f = ir.VectorType(_I32, GROUP), ir.VectorType(_F32, GROUP)
            if bits == 8:
                levels = builder.sext(builder.load(_pointer(builder, args[0], _I8, GROUP), align=1), v32i)
            else:
                byte = builder.load(_pointer(builder, args[0], _I8, 16), align=1)
                low = builder.and_(byte, _all(15, _I8, 16))
                high = builder.lshr(byte, _all(4, _I8, 16))
                both = builder.shuffle_vector(low, high, ir.Constant(v32i, list(range(GROUP))))
                levels = builder.sub(builder.zext(both, v32i), _all(8, _I32))
            wide_scale = builder.bitcast(builder.shl(builder.zext(args[1], _I32), ir.Constant(_I32, 16)), _F32)
            values = builder.fmul(builder.sitofp(levels, v32f), _splat(builder, wide_scale, GROUP))
            if is_wide:
                target = _pointer(builder, args[2], _F32, GROUP)
                if adds:
                    values = builder.fadd(builder.load(target, align=4), values)
                builder.store(values, target, align=4)
            else:
                short = _bf16_bits(builder, builder.bitcast(values, v32i), GROUP)
                builder.store(short, _pointer(builder, args[2], _I16, GROUP), align=2)
            return context.get_dummy_value()

        return types.void(types.intp, types.uint16, types.intp), codegen

    return decode_group


_encode8_f32, _encode8_bf16 = _encode_group(8, True), _encode_group(8, False)
_encode4_f32, _encode4_bf16 = _encode_group(4, True), _encode_group(4, False)
_decode8_f32, _decode8_bf16 = _decode_group(8, True, False), _decode_group(8, False, False)
_decode4_f32, _decode4_bf16 = _decode_group(4, True, False), _decode_group(4, False, False)
_add8_f32, _add4_f32 = _decode_group(8, True, True), _decode_group(4, True, True)


@numba.njit(nogil=True, cache=True)
def _encode(x, codes, scales, bits, is_wide):  # type: ignore[no-untyped-def]
    """Encode scales.size groups at address ``x`` to address ``codes``."""
    for g in range(scales.size):
        if bits == 8 and is_wide:
            scales[g] = _encode8_f32(x + g * 128, codes + g * 32)
        elif bits == 8:
            scales[g] = _encode8_bf16(x + g * 64, codes + g * 32)
        elif is_wide:
            scales[g] = _encode4_f32(x + g * 128, codes + g * 16)
        else:
            scales[g] = _encode4_bf16(x + g * 64, codes + g * 16)


@numba.njit(nogil=True, cache=True)
def _decode(codes, scales, out, bits, is_wide, adds):  # type: ignore[no-untyped-def]
    """Decode scales.size groups at address ``codes`` to address ``out``."""
    for g in range(scales.size):
        if bits == 8 and adds:
            _add8_f32(codes + g * 32, scales[g], out + g * 128)
        elif adds:
            _add4_f32(codes + g * 16, scales[g], out + g * 128)
        elif bits == 8 and is_wide:
            _decode8_f32(codes + g * 32, scales[g], out + g * 128)
        elif bits == 8:
            _decode8_bf16(codes + g * 32, scales[g], out + g * 64)
        elif is_wide:
            _decode4_f32(codes + g * 16, scales[g], out + g * 128)
        else:
            _decode4_bf16(codes + g * 16, scales[g], out + g * 64)


def can_take(x: Tensor) -> bool:
    """Return whether the kernels encode this tensor: on the CPU, contiguous, fp32 or bf16."""
    return x.device.type == "cpu" and x.dtype in DTYPES and x.is_contiguous()


def encode(x: Tensor, message: Tensor, bits: int) -> Tensor:
    """Encode flat ``x`` (fp32 or bf16) into ``message`` (uint8, exactly sized, 2-byte aligned); return its bf16 scales.

    A group with NaN or infinity gets the scale NaN.
    """
    n, group_bytes = x.numel(), GROUP * bits // 8
    whole, groups = n // GROUP, -(-n // GROUP)
    scales = message[groups * group_bytes :].view(torch.bfloat16)
    scale_bits = scales.view(torch.uint16).numpy()
    is_wide = x.dtype == torch.float32
    _encode(x.data_ptr(), message.data_ptr(), scale_bits[:whole], bits, is_wide)
    if whole < groups:
        tail = x.new_zeros(GROUP)
        tail[: n - whole * GROUP] = x[whole * GROUP :]
        _encode(tail.data_ptr(), message.data_ptr() + whole * group_bytes, scale_bits[whole:], bits, is_wide)
    return scales


def _run_decode(message: Tensor, out: Tensor, bits: int, adds: bool) -> None:
    n, group_bytes = out.numel(), GROUP * bits // 8
    whole, groups = n // GROUP, -(-n // GROUP)
    tail_bytes = message[groups * group_bytes :]
    if tail_bytes.data_ptr() % 2:
        tail_bytes = tail_bytes.clone()
    scale_bits: np.ndarray = tail_bytes.view(torch.uint16).numpy()
    is_wide = out.dtype == torch.float32
    _decode(message.data_ptr(), scale_bits[:whole], out.data_ptr(), bits, is_wide, adds)
    if whole < groups:
        tail = out.new_zeros(GROUP)
        rest = n - whole * GROUP
        tail[:rest] = out[whole * GROUP :]
        _decode(message.data_ptr() + whole * group_bytes, scale_bits[whole:], tail.data_ptr(), bits, is_wide, adds)
        out[whole * GROUP :] = tail[:rest]


def decode(message: Tensor, out: Tensor, bits: int) -> None:
    """Decode contiguous ``message`` into flat ``out`` (fp32 or bf16)."""
    _run_decode(message, out, bits, adds=False)


def add_decoded(message: Tensor, total: Tensor, bits: int) -> None:
    """Add the decoded message to flat fp32 ``total`` in place."""
    _run_decode(message, total, bits, adds=True)
