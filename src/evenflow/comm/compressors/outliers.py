"""Few bits for most entries, floats for the few that stick out.

``spike-int2``, ``spike-int3``: spike reserving (Flash Communication V2, 2508.03760). Of each group of 32 the minimum and the
maximum are sent as bf16 with their positions; the range of the other thirty is cut into 2^b - 1 equal steps.

``outlier-int4:share``: the channels with the largest entries are sent as bf16, everything else as group-32 int4, after
2411.07942. There the channels are calibrated once; here every message names its own, 4 bytes per channel, so that no
calibration data is needed.
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
    rows_and_width,
)
from evenflow.comm.compressors.quantise import GroupInt
from evenflow.comm.spec_arguments import fraction, no_arguments


class SpikeInt(Compressor):
    """``bits``-bit codes per group of 32, minimum and maximum reserved.

    Message: spikes bf16 [groups, 2], low end and step bf16 [groups, 2], positions uint8 [groups, 2], codes.
    """

    by_rows = False
    group = 32

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.top = 2**bits - 1

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        groups = -(-num_elements(shape) // self.group)
        meta = groups * (2 + 2) * 2 + groups * 2
        return WirePlan(meta + wire.packed_bytes(groups * self.group, self.bits), meta)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        n = num_elements(x.shape)
        groups = -(-n // self.group)
        grouped = pad(x.detach().reshape(-1).float(), (0, groups * self.group - n)).view(groups, self.group)
        low, at_low = grouped.min(dim=1)
        high, at_high = grouped.max(dim=1)
        # A constant group has its minimum and maximum in the same place; any other place keeps two distinct positions.
        at_high = torch.where(at_high == at_low, (at_low + 1) % self.group, at_high)
        positions = torch.stack([at_low, at_high], dim=1)
        spikes = torch.stack([low, high], dim=1).bfloat16()
        check_finite(spikes, self.spec or f"spike-int{self.bits}")
        reserved = torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, positions, True)
        floor = grouped.masked_fill(reserved, torch.inf).amin(dim=1).bfloat16()
        ceiling = grouped.masked_fill(reserved, -torch.inf).amax(dim=1)
        # Halves first, so that a range of up to twice the largest float does not overflow.
        step = (ceiling / self.top - floor.float() / self.top).bfloat16()
        inverse = torch.where(step > 2.0**-120, 1.0 / step.float(), 0.0)
        codes = torch.round((grouped - floor.float()[:, None]) * inverse[:, None]).clamp_(0, self.top)
        packed = wire.pack(codes.nan_to_num_(0.0).to(torch.uint8), self.bits)
        return wire.join(spikes, torch.stack([floor, step], dim=1), positions.to(torch.uint8), packed)

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        n = num_elements(shape)
        groups = -(-n // self.group)
        size = wire.packed_bytes(self.group, self.bits)
        spikes, ends, positions, codes = wire.split(
            message,
            (groups * 2, torch.bfloat16),
            (groups * 2, torch.bfloat16),
            (groups * 2, torch.uint8),
            (groups * size, torch.uint8),
        )
        floor, step = ends.float().view(groups, 2).unbind(1)
        levels = wire.unpack(codes.view(groups, size), self.bits, self.group).float()
        reserved = spikes.float().view(groups, 2)
        # Halves, as the range may be twice the largest float; nothing lies outside of the reserved ends.
        low, high = (reserved / 2).unbind(1)
        values = levels * (step / 2)[:, None] + (floor / 2)[:, None]
        values = values.clamp_(low[:, None], high[:, None]).mul_(2)
        values.scatter_(1, positions.view(groups, 2).long(), reserved)
        return wire.narrow(values.view(-1)[:n], dtype).view(tuple(shape))


class OutlierInt(Compressor):
    """The ``share`` of channels with the largest entries as bf16, the rest as group-32 int4.

    Message: channel numbers int32 [m], their columns bf16 [rows, m], the group-32 int4 message of the rest.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.rest = GroupInt(4)

    def num_outliers(self, width: int) -> int:
        """Return how many of ``width`` channels are sent as floats."""
        return max(1, round(self.share * width))

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        rows, width = rows_and_width(shape)
        rest = self.rest.wire_plan(shape, dtype)
        m = self.num_outliers(width)
        return WirePlan(m * 4 + rows * m * 2 + rest.payload_bytes, m * 4 + rest.meta_bytes)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        rows, width = rows_and_width(x.shape)
        matrix = x.detach().reshape(rows, width)
        largest = matrix.abs().amax(dim=0)
        check_finite(largest, self.spec or "outlier-int4")
        channels = torch.topk(largest, self.num_outliers(width)).indices
        columns = matrix[:, channels].bfloat16()
        check_finite(columns, self.spec or "outlier-int4")
        rest = self.rest.encode(matrix.index_fill(1, channels, 0.0))
        return wire.join(channels.int(), columns, rest)

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        rows, width = rows_and_width(shape)
        m = self.num_outliers(width)
        rest_bytes = self.rest.wire_plan(shape, dtype).payload_bytes
        channels, columns, rest = wire.split(message, (m, torch.int32), (rows * m, torch.bfloat16), (rest_bytes, torch.uint8))
        matrix = self.rest.decode(rest, (rows, width), dtype)
        matrix[:, channels.long()] = wire.narrow(columns.view(rows, m).float(), dtype)
        return matrix.view(tuple(shape))


def spike_int2(*arguments: str) -> Compressor:
    """Return spike-reserving 2-bit codes: 4.5 bits per element."""
    no_arguments("spike-int2", arguments)
    return SpikeInt(2)


def spike_int3(*arguments: str) -> Compressor:
    """Return spike-reserving 3-bit codes: 5.5 bits per element."""
    no_arguments("spike-int3", arguments)
    return SpikeInt(3)


def outlier_int4(share: str = "0.015625", *rest: str) -> Compressor:
    """Return int4 with that share of the channels (1/64) as bf16."""
    no_arguments("outlier-int4:share", rest)
    return OutlierInt(fraction("outlier-int4", share))
