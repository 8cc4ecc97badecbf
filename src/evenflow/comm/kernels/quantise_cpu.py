"""Fused CPU kernels for group-32 int8 and int4: one pass over the tensor to encode, one to decode.

Semantics, for a group of 32 with scale s = bf16(max|x| / top), 0 if tiny: code = rint(x / s); x' = code * s. int8 codes are
two's complement bytes; int4 codes are offset by 8, the first sixteen of a group in the low nibbles, the others in the
high. Knows only flat tensors, threads and tails; ``quantise_ir`` is the code of a group, ``quantise`` is the caller and its
torch code the oracle, bit for bit.
"""

from __future__ import annotations

import numba
import torch
from torch import Tensor

from evenflow.comm.kernels.quantise_ir import GROUP, decoder, encoder

DTYPES = (torch.float32, torch.bfloat16)
PIECE = 8192
"""Groups that one thread takes at a time, 256 Ki elements; fewer than two such pieces are not worth a second thread."""

_E8F, _E8B, _E4F, _E4B = encoder(8, True), encoder(8, False), encoder(4, True), encoder(4, False)
_D8F, _D8B, _D4F, _D4B = decoder(8, True), decoder(8, False), decoder(4, True), decoder(4, False)
_A8F, _A4F = decoder(8, True, adds=True), decoder(4, True, adds=True)


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
