"""Byte messages: several tensors in one contiguous uint8 tensor, and codes of 1 to 8 bits packed into bytes.

Knows nothing of what the parts mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evenflow.base.errors import WireError


def join(*parts: Tensor) -> Tensor:
    """Return the bytes of ``parts`` one after the other."""
    # A tensor of one element is contiguous whatever its stride says, but bytes are seen through a stride of 1 alone.
    flat = [part.reshape(-1).contiguous().as_strided((part.numel(),), (1,)) for part in parts]
    return torch.cat([part.view(torch.uint8) for part in flat])


def check_size(message: Tensor, size: int) -> None:
    """Raise WireError unless ``message`` has exactly ``size`` bytes."""
    if message.dtype != torch.uint8 or message.numel() != size:
        raise WireError(f"message of {message.numel()} x {message.dtype} where {size} bytes were expected")


def split(message: Tensor, *layout: tuple[int, torch.dtype]) -> list[Tensor]:
    """Cut ``message`` into flat tensors of (number of elements, dtype). Raises WireError if the sizes do not agree."""
    sizes = [count * dtype.itemsize for count, dtype in layout]
    check_size(message, sum(sizes))
    flat = message.reshape(-1)
    parts, start = [], 0
    for size, (_, dtype) in zip(sizes, layout):
        part = flat[start : start + size]
        if part.data_ptr() % dtype.itemsize:
            part = part.clone()
        parts.append(part.view(dtype))
        start += size
    return parts


def narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return decoded fp32 ``values`` as ``dtype``.

    Scales are rounded to bf16, which may lift a value just above the largest fp16; it becomes the largest and not infinity.
    """
    if dtype is torch.float16:
        top = torch.finfo(dtype).max
        values = values.clamp(-top, top)
    return values.to(dtype)


def _planes(bits: int) -> Sequence[tuple[int, int]]:
    """Return (width, shift) of the planes of 8, 4, 2 and 1 bits that make up ``bits``."""
    planes, shift = [], 0
    for width in (8, 4, 2, 1):
        if bits & width:
            planes.append((width, shift))
            shift += width
    return planes


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of ``count`` codes; ``count`` must be divisible by 8."""
    return count * bits // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes [groups, size] of ``bits`` bits into uint8 [groups, size * bits / 8]; size divisible by 8.

    Codes are split into planes of 4, 2 and 1 bits (Flash Communication V2, 2508.03760). Within a plane of width w, byte i
    of a group holds the codes i, i + size*w/8, i + 2*size*w/8, ...: neighbouring bytes come from neighbouring codes, so
    packing and unpacking are plain vector operations.
    """
    if bits == 8:
        return codes
    groups, size = codes.shape
    packed = []
    for width, shift in _planes(bits):
        per_byte = 8 // width
        plane = ((codes >> shift) & ((1 << width) - 1)).view(groups, per_byte, size // per_byte)
        byte = plane[:, 0].clone()
        for i in range(1, per_byte):
            byte |= plane[:, i] << (i * width)
        packed.append(byte)
    return packed[0] if len(packed) == 1 else torch.cat(packed, dim=1)


def unpack(packed: Tensor, bits: int, size: int) -> Tensor:
    """Invert ``pack``: uint8 [groups, size * bits / 8] to uint8 [groups, size]."""
    if bits == 8:
        return packed
    groups = packed.shape[0]
    codes = torch.zeros(groups, size, dtype=torch.uint8, device=packed.device)
    start = 0
    for width, shift in _planes(bits):
        per_byte = 8 // width
        length = size // per_byte
        byte = packed[:, start : start + length]
        plane = codes.view(groups, per_byte, length)
        for i in range(per_byte):
            plane[:, i] |= ((byte >> (i * width)) & ((1 << width) - 1)) << shift
        start += length
    return codes
