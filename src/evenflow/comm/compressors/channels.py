"""The paper's 8-, 4- and 2-bit quantisers with one scale per hidden channel, in its form and corrected.

Corrected (``q8 q4 q2``): levels are symmetric and the largest entry of a channel is a level. 8 and 4 bits use
-(2^(b-1)-1) .. 2^(b-1)-1; 2 bits use -1, -1/3, 1/3, 1 of the scale, so that no level is wasted. Scales are fp32.

Paper form (``paper:Q1-Q3``): scale max|x| in fp16, integers clipped to -2^(b-1) .. 2^(b-1)-1 of x / scale * 2^(b-1). It is
asymmetric: with 2 bits a positive channel maximum decodes to half of itself. Kept because the paper's accuracies were
measured with it.

Message: scales [width], then codes [rows, width padded to 8] packed within each row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from evenflow.comm import wire
from evenflow.comm.compressor import NO_CONTEXT, Compressor, Context, Shape, WirePlan, check_finite, rows_and_width
from evenflow.comm.spec_arguments import no_arguments

TINY_SCALE = 2.0**-120
"""Channels whose scale is not above this are sent as zero: its inverse might not be a float."""


class ChannelInt(Compressor):
    """``bits``-bit integers with one scale per channel (last dimension)."""

    def __init__(self, bits: int, is_paper_form: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.is_paper_form = is_paper_form
        # The published code gathers every rank's message and never encodes a sum.
        self.resends_sums = not is_paper_form
        self.scale_dtype = torch.float16 if is_paper_form else torch.float32

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        rows, width = rows_and_width(shape)
        scales = width * self.scale_dtype.itemsize
        return WirePlan(scales + wire.packed_bytes(rows * _padded(width), self.bits), scales)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        rows, width = rows_and_width(x.shape)
        matrix = x.detach().reshape(rows, width).float()
        scale = matrix.abs().amax(dim=0).to(self.scale_dtype)
        check_finite(scale, self.spec or f"q{self.bits}")
        if not self.is_paper_form:
            scale = torch.where(scale > TINY_SCALE, scale, 0.0)
        codes = pad(self._codes(matrix, scale.float()), (0, _padded(width) - width))
        return wire.join(scale, wire.pack(codes, self.bits))

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        rows, width = rows_and_width(shape)
        size = wire.packed_bytes(_padded(width), self.bits)
        scale, codes = wire.split(message, (width, self.scale_dtype), (rows * size, torch.uint8))
        levels = wire.unpack(codes.view(rows, size), self.bits, _padded(width))[:, :width].float()
        return wire.narrow(self._values(levels) * scale.float(), dtype).view(tuple(shape))

    def _codes(self, matrix: Tensor, scale: Tensor) -> Tensor:
        half = 2 ** (self.bits - 1)
        if self.is_paper_form:
            levels = torch.round(matrix / (scale + 1e-6) * half).clamp_(-half, half - 1) + half
        elif self.bits == 2:
            levels = torch.round((matrix * _inverse(scale) + 1.0) * 1.5).clamp_(0, 3)
        else:
            levels = torch.round(matrix * _inverse(scale) * (half - 1)).clamp_(1 - half, half - 1) + half
        return levels.to(torch.uint8)

    def _values(self, levels: Tensor) -> Tensor:
        half = 2 ** (self.bits - 1)
        if self.is_paper_form:
            return (levels - half) / half
        if self.bits == 2:
            return levels / 1.5 - 1.0
        return (levels - half) / (half - 1)


def _padded(width: int) -> int:
    return -(-width // 8) * 8


def _inverse(scale: Tensor) -> Tensor:
    """Return 1 / scale, and 0 where the scale is 0."""
    return torch.where(scale > 0.0, 1.0 / scale, 0.0)


def q8(*arguments: str) -> Compressor:
    """Return the 8-bit per-channel quantiser, corrected."""
    no_arguments("q8", arguments)
    return ChannelInt(8)


def q4(*arguments: str) -> Compressor:
    """Return the 4-bit per-channel quantiser, corrected."""
    no_arguments("q4", arguments)
    return ChannelInt(4)


def q2(*arguments: str) -> Compressor:
    """Return the 2-bit per-channel quantiser, corrected."""
    no_arguments("q2", arguments)
    return ChannelInt(2)
