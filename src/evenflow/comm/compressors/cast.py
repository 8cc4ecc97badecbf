"""The compressors that only cut: a narrower float, or a part of the channels.

``none`` is the dense baseline. ``caat`` is partial channel synchronisation (CAAT-Net, 2506.19645): the first channels are
summed over ranks, the others stay private to each rank, so ranks do not end with equal tensors.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from evenflow.comm.compressor import (
    NO_CONTEXT,
    Algebra,
    Compressor,
    Context,
    GradientRule,
    Shape,
    WirePlan,
    check_finite,
    num_elements,
    rows_and_width,
)
from evenflow.comm.spec_arguments import fraction, no_arguments


class Cast(Compressor):
    """Send the tensor as it is, or rounded to ``wire_dtype``."""

    algebra = Algebra.LINEAR
    by_rows = False

    def __init__(self, wire_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.wire_dtype = wire_dtype

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        return WirePlan(num_elements(shape) * (self.wire_dtype or dtype).itemsize)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        message = x.reshape(-1).contiguous()
        if self.wire_dtype is None:
            return message
        message = message.to(self.wire_dtype)
        if self.wire_dtype == torch.float16:
            check_finite(message, "fp16")
        return message

    def message_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.wire_dtype or dtype

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        return message.to(dtype, copy=True).view(tuple(shape))

    def reduce(self, x: Tensor, context: Context = NO_CONTEXT) -> Generator[Tensor, Tensor, Tensor]:
        total = yield self.encode(x, context)
        return total.to(dtype=x.dtype).view(x.shape)  # the sum belongs to this exchange alone, so it needs no copy


class PartialChannels(Compressor):
    """Sum only the first ``share`` of the channels; the rest stays as each rank has it."""

    algebra = Algebra.LINEAR
    gradient = GradientRule.AUTOGRAD

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def num_channels(self, width: int) -> int:
        """Return how many of ``width`` channels are summed."""
        return max(1, round(self.share * width))

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        rows, width = rows_and_width(shape)
        return WirePlan(rows * self.num_channels(width) * dtype.itemsize)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return self._parts(x)[0].contiguous()

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        rows, width = rows_and_width(shape)
        shared = message.to(dtype).reshape(rows, -1)
        private = shared.new_zeros(rows, width - shared.shape[1])
        return torch.cat([shared, private], dim=1).view(tuple(shape))

    def reduce(self, x: Tensor, context: Context = NO_CONTEXT) -> Generator[Tensor, Tensor, Tensor]:
        shared = yield self.encode(x, context)
        return torch.cat([shared, self._parts(x)[1]], dim=1).view(x.shape)

    def support(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        mask = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
        self._parts(mask)[0].fill_(True)
        return mask

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cut x into its shared [rows, channels] and its private [rows, width - channels] columns."""
        rows, width = rows_and_width(x.shape)
        matrix, channels = x.reshape(rows, width), self.num_channels(width)
        return matrix[:, :channels], matrix[:, channels:]


def none(*arguments: str) -> Compressor:
    """Return the dense baseline: the tensor as it is."""
    no_arguments("none", arguments)
    return Cast()


def bf16(*arguments: str) -> Compressor:
    """Return a cast to bfloat16."""
    no_arguments("bf16", arguments)
    return Cast(torch.bfloat16)


def fp16(*arguments: str) -> Compressor:
    """Return a cast to float16, which reports values beyond 65504."""
    no_arguments("fp16", arguments)
    return Cast(torch.float16)


def caat(share: str = "0.5", *rest: str) -> Compressor:
    """Return partial channel synchronisation of that share of the channels."""
    no_arguments("caat:share", rest)
    return PartialChannels(fraction("caat", share))
