"""Symmetric integers in groups of 32 neighbours, one bf16 scale per group: int8, int6 and int4.

The format of QuickReduce and Flash Communication (2412.04964). Levels are -(2^(b-1) - 1) .. 2^(b-1) - 1 times the scale
max|x| / (2^(b-1) - 1), so zero and both extremes are levels and the error is at most half a scale. Scales are bf16 and
not fp16: two bytes as well, but no overflow for large activations and no underflow for small gradients. A bf16 tensor's
entries above 3.37e38, the last 0.6 % of its range, may decode to infinity.

Message: packed codes of all groups, then all scales. The last group is filled up with zeros. int8 and int4 in groups of
32 on the CPU run in the fused kernels of ``quantise_cpu``; the torch code is their oracle and gives the same bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from evenflow.comm import wire
from evenflow.comm.compressor import (
    NO_CONTEXT,
    Compressor,
    Context,
    Shape,
    WirePlan,
    check_finite,
    num_elements,
    refuse_non_finite,
)
from evenflow.comm.kernels import quantise_cpu
from evenflow.comm.kernels.quantise_ir import TINY_SCALE
from evenflow.comm.spec_arguments import no_arguments


class GroupInt(Compressor):
    """Symmetric ``bits``-bit integers, one bf16 scale per ``group`` neighbours."""

    by_rows = False

    def __init__(self, bits: int, group: int = 32, use_kernels: bool = True) -> None:
        super().__init__()
        self.bits = bits
        self.group = group
        self.top = 2 ** (bits - 1) - 1
        self.use_kernels = use_kernels and group == 32 and bits in (4, 8)

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        groups = -(-num_elements(shape) // self.group)
        scales = groups * 2
        return WirePlan(wire.packed_bytes(groups * self.group, self.bits) + scales, scales)

    def _has_kernel(self, x: Tensor) -> bool:
        return self.use_kernels and quantise_cpu.can_take(x)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        plan = self.wire_plan(x.shape, x.dtype)
        flat = x.detach().reshape(-1).contiguous()
        if self._has_kernel(flat):
            message = torch.empty(plan.payload_bytes, dtype=torch.uint8)
            self.encode_into(message, flat)
            return message
        groups = -(-flat.numel() // self.group)
        grouped = pad(flat.float(), (0, groups * self.group - flat.numel())).view(groups, self.group)
        largest = grouped.abs().amax(dim=1)
        check_finite(largest, self.spec or f"int{self.bits}")
        scale = (largest / self.top).bfloat16()
        scale = torch.where(scale.float() < TINY_SCALE, torch.zeros_like(scale), scale)
        inverse = torch.where(scale > 0, 1.0 / scale.float(), 0.0)
        levels = torch.round(grouped * inverse[:, None]).clamp_(-self.top, self.top)
        if self.bits == 8:
            codes = levels.to(torch.int8).view(torch.uint8)
        else:
            codes = (levels + 2 ** (self.bits - 1)).to(torch.uint8)
        return wire.join(wire.pack(codes, self.bits), scale)

    def encode_into(self, message: Tensor, x: Tensor, context: Context = NO_CONTEXT) -> None:
        flat = x.detach().reshape(-1).contiguous()
        if not (self._has_kernel(flat) and message.is_contiguous()):
            super().encode_into(message, x, context)
        elif not quantise_cpu.encode(flat, message, self.bits):
            refuse_non_finite(self.spec or f"int{self.bits}")

    def decode_into(self, message: Tensor, out: Tensor, context: Context = NO_CONTEXT) -> None:
        if not (self.use_kernels and quantise_cpu.can_take(out) and message.is_contiguous()):
            super().decode_into(message, out, context)
            return
        self._check_size(message, out.numel())
        quantise_cpu.decode(message, out.view(-1), self.bits)

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        n = num_elements(shape)
        if self.use_kernels and message.device.type == "cpu" and dtype in quantise_cpu.DTYPES and message.is_contiguous():
            out = torch.empty(tuple(shape), dtype=dtype)
            self.decode_into(message, out)
            return out
        codes, scale = self._parts(message, n)
        if self.bits == 8:
            levels = codes.view(torch.int8).float()
        else:
            levels = wire.unpack(codes, self.bits, self.group).float() - 2 ** (self.bits - 1)
        return wire.narrow((levels * scale.float()[:, None]).view(-1)[:n], dtype).view(tuple(shape))

    def add_decoded(
        self, message: Tensor, total: Tensor, dtype: torch.dtype = torch.float32, context: Context = NO_CONTEXT
    ) -> None:
        fits = total.dtype == dtype == torch.float32 and quantise_cpu.can_take(total)
        if self.use_kernels and fits and message.is_contiguous():
            self._check_size(message, total.numel())
            quantise_cpu.add_decoded(message, total.view(-1), self.bits)
        else:
            total += self.decode(message, total.shape, dtype, context)

    def _check_size(self, message: Tensor, n: int) -> None:
        groups = -(-n // self.group)
        wire.check_size(message, groups * self.group * self.bits // 8 + groups * 2)

    def _parts(self, message: Tensor, n: int) -> tuple[Tensor, Tensor]:
        groups = -(-n // self.group)
        size = wire.packed_bytes(self.group, self.bits)
        codes, scale = wire.split(message, (groups * size, torch.uint8), (groups, torch.bfloat16))
        return codes.view(groups, size), scale


def int8_g32(*arguments: str) -> Compressor:
    """Return group-32 int8: 8.5 bits per element."""
    no_arguments("int8-g32", arguments)
    return GroupInt(8)


def int6_g32(*arguments: str) -> Compressor:
    """Return group-32 int6: 6.5 bits per element."""
    no_arguments("int6-g32", arguments)
    return GroupInt(6)


def int4_g32(*arguments: str) -> Compressor:
    """Return group-32 int4: 4.5 bits per element."""
    no_arguments("int4-g32", arguments)
    return GroupInt(4)
