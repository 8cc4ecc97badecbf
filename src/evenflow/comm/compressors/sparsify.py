"""Send only k entries: the largest (Top-K), or random ones (Random-K).

``topk`` sends values and int32 indices (int64 in the paper's form), ``topk-bitmap`` a bit per entry instead of indices,
which is smaller above k/n = 1/32. ``randomk`` is the paper's: every rank draws its own indices, sends them, and nothing is
rescaled, so it is biased. ``randomk-shared`` draws the same indices on all ranks from a shared seed: no indices travel,
messages add up, and entries are scaled so that the result is unbiased. It takes one random entry of each of k equal
stretches of the tensor, which costs O(k) and not O(n).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from evenflow.base.errors import ConfigError
from evenflow.comm import wire
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
)
from evenflow.comm.kernels import sparsify_cpu
from evenflow.comm.spec_arguments import fraction, no_arguments, positive_int

CountRule = Callable[[Shape], int]
"""How many entries of a tensor of some shape are sent."""


def count_rule(name: str, text: str) -> CountRule:
    """Return the rule for a share (``0.1``, needs a point) or a count (``4096``). The rule raises ConfigError if k > n."""
    if "." in text or "e" in text.lower():
        share = fraction(name, text)
        return lambda shape: max(1, int(share * num_elements(shape)))
    k = positive_int(name, text)

    def rule(shape: Shape) -> int:
        n = num_elements(shape)
        if k > n:
            raise ConfigError(f"{name}:{k}: k is larger than the tensor of shape {tuple(shape)} ({n} elements)")
        return k

    return rule


def seed_of(context: Context, salt: int = 0) -> int:
    """Return the shared seed of an exchange: a hash of its step, equal on all ranks (SplitMix64's mixing)."""
    z = (context.step * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1


class TopK(Compressor):
    """The k entries of largest magnitude. Message: indices [k], then values [k] in ``value_dtype`` or x's own."""

    by_rows = False
    resends_sums = False
    gradient = GradientRule.STRAIGHT_THROUGH

    def __init__(
        self, count: CountRule, index_dtype: torch.dtype = torch.int32, value_dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.count = count
        self.index_dtype = index_dtype
        self.value_dtype = value_dtype

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        k = self.count(shape)
        meta = k * self.index_dtype.itemsize
        return WirePlan(meta + k * (self.value_dtype or dtype).itemsize, meta)

    def chosen(self, flat: Tensor, k: int, context: Context) -> Tensor:
        """Return the indices [k] of the entries to send, int64."""
        if sparsify_cpu.can_take(flat):
            return sparsify_cpu.largest(flat, k)
        return torch.topk(flat.abs(), k, sorted=False).indices

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        flat = x.detach().reshape(-1).contiguous()
        if flat.numel() > torch.iinfo(self.index_dtype).max:
            raise ConfigError(f"{flat.numel()} elements do not fit {self.index_dtype} indices")
        index = self.chosen(flat, self.count(x.shape), context)
        values = flat[index].to(self.value_dtype or x.dtype)
        self._check(flat, values)
        return wire.join(index.to(self.index_dtype), values)

    def _check(self, flat: Tensor, values: Tensor) -> None:
        # NaN and infinity count as the largest magnitudes, so if the chosen values are finite, the whole tensor is.
        check_finite(values, self.spec or "topk")

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        k = self.count(shape)
        index, values = wire.split(message, (k, self.index_dtype), (k, self.value_dtype or dtype))
        out = torch.zeros(num_elements(shape), dtype=dtype, device=message.device)
        return out.index_copy_(0, index.long(), values.to(dtype)).view(tuple(shape))

    def add_decoded(
        self, message: Tensor, total: Tensor, dtype: torch.dtype = torch.float32, context: Context = NO_CONTEXT
    ) -> None:
        k = self.count(total.shape)
        index, values = wire.split(message, (k, self.index_dtype), (k, self.value_dtype or dtype))
        total.view(-1).index_add_(0, index.long(), values.to(total.dtype))

    def support(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        mask = torch.zeros(x.numel(), dtype=torch.bool, device=x.device)
        mask[self.chosen(x.detach().reshape(-1).contiguous(), self.count(x.shape), context)] = True
        return mask.view(x.shape)


class TopKBitmap(TopK):
    """Top-K with a bitmap. Message: values [k] in the order of their positions, then ceil(n / 8) bytes of bits."""

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        meta = -(-num_elements(shape) // 8)
        return WirePlan(meta + self.count(shape) * dtype.itemsize, meta)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        flat = x.detach().reshape(-1).contiguous()
        n = flat.numel()
        mask = torch.zeros(-(-n // 8) * 8, dtype=torch.uint8, device=x.device)
        mask[self.chosen(flat, self.count(x.shape), context)] = 1
        values = flat[mask[:n].bool()]
        self._check(flat, values)
        return wire.join(values, wire.pack(mask.view(1, -1), 1))

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        n = num_elements(shape)
        size = -(-n // 8)
        values, bits = wire.split(message, (self.count(shape), dtype), (size, torch.uint8))
        mask = wire.unpack(bits.view(1, -1), 1, size * 8).view(-1)[:n].bool()
        out = torch.zeros(n, dtype=dtype, device=message.device)
        out[mask] = values
        return out.view(tuple(shape))

    def add_decoded(
        self, message: Tensor, total: Tensor, dtype: torch.dtype = torch.float32, context: Context = NO_CONTEXT
    ) -> None:
        total += self.decode(message, total.shape, dtype, context)


class RandomK(TopK):
    """k entries drawn without replacement, by each rank for itself, not rescaled; indices are sent."""

    def chosen(self, flat: Tensor, k: int, context: Context) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(context, salt=zlib.crc32(repr(context.key).encode())))
        return torch.randperm(flat.numel(), generator=generator)[:k].to(flat.device)

    def _check(self, flat: Tensor, values: Tensor) -> None:
        # Entries that are not drawn must not hide a fault. The sum is one pass; it overflows only for huge tensors.
        if not bool(torch.isfinite(flat.sum())):
            check_finite(flat, self.spec or "randomk")


class SharedRandomK(Compressor):
    """One random entry of each of k equal stretches, equal on all ranks, scaled by the length of its stretch."""

    algebra = Algebra.LINEAR
    by_rows = False
    gradient = GradientRule.AUTOGRAD

    def __init__(self, count: CountRule) -> None:
        super().__init__()
        self.count = count

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        return WirePlan(self.count(shape) * dtype.itemsize)

    def chosen(self, shape: Shape, context: Context, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the indices [k] and the lengths [k] of their stretches."""
        n, k = num_elements(shape), self.count(shape)
        generator = torch.Generator().manual_seed(seed_of(context))
        edges = torch.arange(k + 1, dtype=torch.int64) * n // k
        lengths = edges[1:] - edges[:-1]
        offset = (torch.rand(k, generator=generator, dtype=torch.float64) * lengths).long()
        return (edges[:-1] + offset).to(device), lengths.to(device)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        flat = x.reshape(-1)
        if not bool(torch.isfinite(flat.detach().sum())):
            check_finite(flat.detach(), self.spec or "randomk-shared")
        index, _ = self.chosen(x.shape, context, x.device)
        return flat[index]

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        index, lengths = self.chosen(shape, context, message.device)
        out = torch.zeros(num_elements(shape), dtype=dtype, device=message.device)
        return out.index_add(0, index, (message * lengths).to(dtype)).view(tuple(shape))

    def support(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        mask = torch.zeros(x.numel(), dtype=torch.bool, device=x.device)
        mask[self.chosen(x.shape, context, x.device)[0]] = True
        return mask.view(x.shape)


def topk(count: str = "0.1", *rest: str) -> Compressor:
    """Return Top-K of a share or a count, with int32 indices."""
    no_arguments("topk:k", rest)
    return TopK(count_rule("topk", count))


def topk_bitmap(count: str = "0.1", *rest: str) -> Compressor:
    """Return Top-K of a share or a count, with a bitmap."""
    no_arguments("topk-bitmap:k", rest)
    return TopKBitmap(count_rule("topk-bitmap", count))


def randomk(count: str = "0.1", *rest: str) -> Compressor:
    """Return Random-K as in the paper, with int32 indices."""
    no_arguments("randomk:k", rest)
    return RandomK(count_rule("randomk", count))


def randomk_shared(count: str = "0.1", *rest: str) -> Compressor:
    """Return Random-K with a shared seed: linear and unbiased."""
    no_arguments("randomk-shared:k", rest)
    return SharedRandomK(count_rule("randomk-shared", count))
