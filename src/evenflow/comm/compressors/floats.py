"""8- and 4-bit floats with a scale per block: FP8 e4m3 per 128, and the OCP microscaling formats MXFP8 and MXFP4.

FP8: bf16 scale max|x| / 448. MX (OCP Microscaling Formats 1.0): one power-of-two scale byte (E8M0, bias 127) per 32 elements,
2^(floor(log2 max|x|) - largest element exponent); entries beyond the largest element saturate, which costs the maximum of
a block up to 1/8 (e4m3) or 1/4 (e2m1) of itself. That is the format, not a slip here.

Message: codes of all blocks, then scales. Codes are e4m3 bytes, or e2m1 nibbles (low nibbles: first half of the block).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from evenflow.comm import wire
from evenflow.comm.compressor import NO_CONTEXT, Compressor, Context, Shape, WirePlan, check_finite, num_elements
from evenflow.comm.spec_arguments import no_arguments

E4M3_MAX = 448.0
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Midpoints between neighbours; a tie goes to the even mantissa, so every second boundary belongs to the upper neighbour.
_BELOW = 1.0 - 2.0**-24
E2M1_BOUNDARIES = (0.25, 0.75 * _BELOW, 1.25, 1.75 * _BELOW, 2.5, 3.5 * _BELOW, 5.0)


class BlockFloat(Compressor):
    """Floats of ``bits`` (8: e4m3, 4: e2m1) with one scale per ``block``, bf16 or a power of two."""

    by_rows = False

    def __init__(self, bits: int, block: int, is_microscaled: bool) -> None:
        super().__init__()
        self.bits = bits
        self.block = block
        self.is_microscaled = is_microscaled
        self.largest_exponent = 8 if bits == 8 else 2
        self.largest = E4M3_MAX if bits == 8 else E2M1_VALUES[-1]
        self.scale_dtype = torch.uint8 if is_microscaled else torch.bfloat16

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        blocks = -(-num_elements(shape) // self.block)
        scales = blocks * self.scale_dtype.itemsize
        return WirePlan(wire.packed_bytes(blocks * self.block, self.bits) + scales, scales)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        n = num_elements(x.shape)
        blocks = -(-n // self.block)
        blocked = pad(x.detach().reshape(-1).float(), (0, blocks * self.block - n)).view(blocks, self.block)
        largest = blocked.abs().amax(dim=1)
        check_finite(largest, self.spec or f"fp{self.bits}")
        scale_code, scale = self._scales(largest)
        # Dividing by the tiniest scale could overflow; entries that small are zero at the scale's precision.
        inverse = torch.where(scale > 2.0**-120, 1.0 / scale, 0.0)
        scaled = (blocked * inverse[:, None]).clamp_(-self.largest, self.largest)
        if self.bits == 8:
            codes = scaled.to(torch.float8_e4m3fn).view(torch.uint8)
        else:
            boundaries = torch.tensor(E2M1_BOUNDARIES, device=scaled.device)
            magnitude = torch.bucketize(scaled.abs(), boundaries)
            codes = wire.pack((magnitude + 8 * torch.signbit(scaled)).to(torch.uint8), 4)
        return wire.join(codes, scale_code)

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        n = num_elements(shape)
        blocks = -(-n // self.block)
        size = wire.packed_bytes(self.block, self.bits)
        codes, scale_code = wire.split(message, (blocks * size, torch.uint8), (blocks, self.scale_dtype))
        if self.bits == 8:
            values = codes.view(torch.float8_e4m3fn).float().view(blocks, self.block)
        else:
            table = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)], device=message.device)
            values = table[wire.unpack(codes.view(blocks, size), 4, self.block).long()]
        return wire.narrow((values * self._scale_of(scale_code)[:, None]).view(-1)[:n], dtype).view(tuple(shape))

    def _scales(self, largest: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_microscaled:
            code = (largest / self.largest).bfloat16()
            return code, code.float()
        _, exponent = torch.frexp(largest)  # largest = mantissa * 2^exponent, mantissa in [0.5, 1)
        exponent = torch.where(largest > 0, exponent - 1 - self.largest_exponent, -127).clamp_(-127, 127)
        code = (exponent + 127).to(torch.uint8)
        return code, self._scale_of(code)

    def _scale_of(self, code: Tensor) -> Tensor:
        if not self.is_microscaled:
            return code.float()
        return torch.ldexp(torch.ones_like(code, dtype=torch.float32), code.int() - 127)


def fp8_g128(*arguments: str) -> Compressor:
    """Return FP8 e4m3 with a bf16 scale per 128 elements."""
    no_arguments("fp8-g128", arguments)
    return BlockFloat(8, 128, is_microscaled=False)


def mxfp8(*arguments: str) -> Compressor:
    """Return MXFP8 (e4m3, one scale byte per 32)."""
    no_arguments("mxfp8", arguments)
    return BlockFloat(8, 32, is_microscaled=True)


def mxfp4(*arguments: str) -> Compressor:
    """Return MXFP4 (e2m1, one scale byte per 32)."""
    no_arguments("mxfp4", arguments)
    return BlockFloat(4, 32, is_microscaled=True)
