"""One site's compressed exchange: compressor, transport, group and books in one object, differentiable.

Tensor parallelism needs two conjugate operators around a sharded block (Megatron's f and g):

* ``reduce`` (g): forward the compressed sum over ranks; backward by the gradient rule, no communication;
* ``copy`` (f): forward nothing; backward the compressed sum of the gradients.

``Exchange`` runs on a process group, ``VirtualExchange`` on W virtual ranks of one process with the same transports.
The order of exchanges of a site must be equal on all ranks: it seeds the shared randomness.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from evenflow.base.errors import ConfigError
from evenflow.comm.collectives.collective import Collective
from evenflow.comm.compressor import Compressor, Context, GradientRule
from evenflow.comm.factory import get_compressor
from evenflow.comm.ledger import Kind, Ledger
from evenflow.comm.switch import Switch
from evenflow.comm.transport import (
    ALL_REDUCE,
    GATHER,
    SCATTER_SUM,
    Member,
    Operation,
    Steps,
    Transport,
    drive,
    drive_together,
    get_transport,
)


class _SiteExchange:
    """What both kinds of exchange share: books, the switch, and the running number.

    ``site`` names the entry of the ledger. ``transport`` and ``rule`` default to what the compressor asks for; a ``ledger`` and
    a ``switch`` may be shared by all exchanges of a model. Tensors of fewer than ``dense_below`` bytes are sent as they are:
    below a link's break-even, coding takes longer than it saves. Raises ConfigError if the gradient rule needs another
    transport.
    """

    def __init__(
        self,
        site: str,
        compressor: Compressor,
        transport: Transport | None = None,
        rule: GradientRule | None = None,
        ledger: Ledger | None = None,
        switch: Switch | None = None,
        dense_below: int = 0,
        *,
        world_size: int,
    ) -> None:
        self.site = site
        self.compressor = compressor
        self.dense_below = dense_below
        self.transport = transport or get_transport(None, compressor, world_size)
        self.rule = rule or _default_rule(compressor, self.transport)
        if self.rule is GradientRule.AUTOGRAD and self.transport is not ALL_REDUCE:
            raise ConfigError(f"{site}: gradients through {compressor.spec} need all-reduce, not {self.transport.name}")
        self.ledger = ledger or Ledger()
        self.switch = switch or Switch()
        """Off: this exchange is dense (warm-up, or evaluation without compression)."""
        self.batch: Hashable = ()
        """Names the samples that come, for memories that belong to them."""
        self.step = 0
        self._dense = get_compressor("none")
        self._same = compressor.replica() if self.rule is GradientRule.SAME else None

    def _next_context(self, key: Hashable) -> Context:
        self.step += 1
        return Context(self.batch if key == () else key, self.step)

    def _compresses(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """Whether a tensor like this is compressed now. Equal on all ranks, whose tensors are alike."""
        return self.switch.is_on and math.prod(shape) * dtype.itemsize >= self.dense_below

    def _now(self, transport: Transport, shape: Sequence[int], dtype: torch.dtype) -> tuple[Transport, Compressor]:
        if self._compresses(shape, dtype):
            return transport, self.compressor
        return (ALL_REDUCE if transport is self.transport else transport), self._dense

    def _plan(self, transport: Transport, compressor: Compressor, x: Tensor, world_size: int) -> None:
        self.ledger.expect(self.site, transport.planned_bytes(compressor, x.shape, x.dtype, world_size))

    def _observe(self, operation: Operation, world_size: int) -> None:
        tensor = operation.tensor
        self.ledger.count(self.site, operation.kind, tensor.numel() * tensor.element_size(), world_size)

    def _gradient(self, grad: Tensor, mask: Tensor | None, context: Context) -> Tensor:
        """Apply the rule to a gradient that is equal on all ranks."""
        if self._same is not None and self._compresses(grad.shape, grad.dtype):
            with torch.no_grad():
                return self._same.decode(self._same.encode(grad, context), grad.shape, grad.dtype, context)
        return grad if mask is None else grad * mask


def _default_rule(compressor: Compressor, transport: Transport) -> GradientRule:
    if compressor.gradient is GradientRule.AUTOGRAD and transport is not ALL_REDUCE:
        return GradientRule.STRAIGHT_THROUGH
    return compressor.gradient


class Exchange(_SiteExchange):
    """A site's exchange among the ranks of a group: every rank holds one and calls the same methods in the same order.

    Tensors are floating, of any shape, equal on all ranks; results have the dtype of the input.
    """

    def __init__(self, site: str, compressor: Compressor, collective: Collective, **options: Any) -> None:
        super().__init__(site, compressor, **options, world_size=collective.world_size)
        self.collective = collective
        self.member = Member(collective.rank, collective.world_size)
        if self.rule is GradientRule.AUTOGRAD:
            compressor.synchronise_with(self._sum_of_gradients)

    def _sum_of_gradients(self, parameter: Tensor) -> Tensor:
        return _SumGradient.apply(parameter, self)

    def run(self, transport: Transport, x: Tensor, context: Context) -> Tensor:
        """Run one exchange without a gradient rule."""
        transport, compressor = self._now(transport, x.shape, x.dtype)
        self._plan(transport, compressor, x, self.member.world_size)
        steps: Steps = transport.steps(x, compressor, self.member, context)
        return drive(steps, self.collective, self._observe)

    def sum(self, x: Tensor, key: Hashable = ()) -> Tensor:
        """Return the compressed sum over ranks, outside of autograd: what inference needs."""
        with torch.no_grad():
            return self.run(self.transport, x, self._next_context(key))

    def reduce(self, x: Tensor, key: Hashable = ()) -> Tensor:
        """Return the compressed sum over ranks; the gradient follows the rule (operator g)."""
        context = self._next_context(key)
        if self.rule is GradientRule.AUTOGRAD or not self._compresses(x.shape, x.dtype):
            return self.run(self.transport, x, context)
        return _Reduce.apply(x, self, context)

    def copy(self, x: Tensor, key: Hashable = ()) -> Tensor:
        """Return x; its gradient will be the compressed sum over ranks (operator f)."""
        return _Copy.apply(x, self, key)

    def scatter(self, x: Tensor, key: Hashable = ()) -> Tensor:
        """Return the own part, along the first dimension, of the compressed sum: sequence parallelism's reduce-scatter."""
        with torch.no_grad():
            return self.run(SCATTER_SUM, x, self._next_context(key))

    def gather(self, x: Tensor, key: Hashable = ()) -> Tensor:
        """Return all ranks' parts along the first dimension: sequence parallelism's all-gather."""
        with torch.no_grad():
            return self.run(GATHER, x, self._next_context(key))

    def reduce_scatter(self, x: Tensor, backward: Exchange) -> Tensor:
        """``scatter`` with the gradient gathered through ``backward``."""
        return _ReduceScatter.apply(x, self, backward)

    def all_gather(self, x: Tensor, backward: Exchange) -> Tensor:
        """``gather`` with the gradient scatter-summed through ``backward``."""
        return _AllGather.apply(x, self, backward)

    def send(self, x: Tensor, to_rank: int, key: Hashable = ()) -> None:
        """Encode and send a tensor to one rank of the group."""
        context = self._next_context(key)
        _, compressor = self._now(self.transport, x.shape, x.dtype)
        message = compressor.encode(x.detach(), context)
        self.ledger.expect(self.site, compressor.wire_plan(x.shape, x.dtype).payload_bytes)
        self._count_send(message)
        self.collective.send(message, to_rank)

    def receive(self, shape: Sequence[int], dtype: torch.dtype, from_rank: int, key: Hashable = ()) -> Tensor:
        """Receive and decode a tensor of that shape from one rank of the group."""
        context = self._next_context(key)
        _, compressor = self._now(self.transport, shape, dtype)
        message = self.collective.receive(empty_message(compressor, shape, dtype), from_rank)
        return compressor.decode(message, shape, dtype, context)

    def _count_send(self, message: Tensor) -> None:
        self._observe(Operation(Kind.SEND, message), self.member.world_size)


def empty_message(compressor: Compressor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an empty tensor with the dtype and size of a message."""
    size = compressor.wire_plan(shape, dtype).payload_bytes
    message_dtype = compressor.message_dtype(dtype)
    return torch.empty(size // message_dtype.itemsize, dtype=message_dtype)


class VirtualExchange(_SiteExchange):
    """A site's exchange among W virtual ranks of this process; trainable parameters are shared, memories are not."""

    def __init__(self, site: str, compressor: Compressor, world_size: int, **options: Any) -> None:
        super().__init__(site, compressor, **options, world_size=world_size)
        self.replicas = [compressor] + [compressor.replica() for _ in range(world_size - 1)]
        self.world_size = world_size

    def run(self, transport: Transport, xs: Sequence[Tensor], context: Context) -> list[Tensor]:
        """Run one exchange; return what each rank would hold."""
        transport, compressor = self._now(transport, xs[0].shape, xs[0].dtype)
        self._plan(transport, compressor, xs[0], self.world_size)
        compressors = self.replicas if compressor is self.compressor else [compressor] * self.world_size
        members = [Member(rank, self.world_size) for rank in range(self.world_size)]
        return drive_together(
            [transport.steps(x, c, member, context) for x, c, member in zip(xs, compressors, members)], self._observe
        )

    def reduce(self, xs: Sequence[Tensor], key: Hashable = ()) -> Tensor:
        """Return the compressed sum of the ranks' tensors, which all ranks hold; the gradient follows the rule."""
        context = self._next_context(key)
        if self.rule is GradientRule.AUTOGRAD or not self._compresses(xs[0].shape, xs[0].dtype):
            return self.run(self.transport, xs, context)[0]
        return _VirtualReduce.apply(self, context, *xs)

    def copy(self, x: Tensor, key: Hashable = ()) -> tuple[Tensor, ...]:
        """Return x once per rank; the gradients are summed through the exchange."""
        return _VirtualCopy.apply(x, self, key)


class _Reduce(torch.autograd.Function):
    """Compressed sum forward, gradient rule backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange, context: Context) -> Tensor:
        ctx.exchange, ctx.context = exchange, context
        own = Context((context.key, exchange.member.rank), context.step)
        ctx.mask = exchange.compressor.support(x, own) if exchange.rule is GradientRule.MASKED else None
        return exchange.run(exchange.transport, x.detach(), context)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.exchange._gradient(grad, ctx.mask, ctx.context), None, None


class _Copy(torch.autograd.Function):
    """Nothing forward, compressed sum of gradients backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange, key: Hashable) -> Tensor:
        ctx.exchange, ctx.key = exchange, key
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.exchange.sum(grad, ctx.key), None, None


class _SumGradient(torch.autograd.Function):
    """A parameter used on every rank with its own data: its gradient is summed, dense, under the site ``parameters``."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        exchange = ctx.exchange
        world_size, dense = exchange.member.world_size, exchange._dense
        site = "parameters"
        exchange.ledger.expect(site, ALL_REDUCE.planned_bytes(dense, grad.shape, grad.dtype, world_size))
        exchange.ledger.count(site, Kind.ALL_REDUCE, grad.numel() * grad.element_size(), world_size)
        return exchange.collective.all_reduce(grad), None


class _ReduceScatter(torch.autograd.Function):
    """Scatter-sum forward, gather backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange, backward: Exchange) -> Tensor:
        ctx.backward_exchange = backward
        return exchange.scatter(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.backward_exchange.gather(grad.contiguous()), None, None


class _AllGather(torch.autograd.Function):
    """Gather forward, scatter-sum backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange, backward: Exchange) -> Tensor:
        ctx.backward_exchange = backward
        return exchange.gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.backward_exchange.scatter(grad.contiguous()), None, None


class _VirtualReduce(torch.autograd.Function):
    """``_Reduce`` for all virtual ranks at once."""

    @staticmethod
    def forward(ctx: Any, exchange: VirtualExchange, context: Context, *xs: Tensor) -> Tensor:
        ctx.exchange, ctx.context = exchange, context
        ctx.masks = [
            compressor.support(x, Context((context.key, rank), context.step)) if exchange.rule is GradientRule.MASKED else None
            for rank, (compressor, x) in enumerate(zip(exchange.replicas, xs))
        ]
        return exchange.run(exchange.transport, [x.detach() for x in xs], context)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        exchange = ctx.exchange
        if exchange.rule is GradientRule.MASKED:
            return None, None, *(grad * mask for mask in ctx.masks)
        once = exchange._gradient(grad, None, ctx.context)
        return None, None, *([once] * exchange.world_size)


class _VirtualCopy(torch.autograd.Function):
    """``_Copy`` for all virtual ranks at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: VirtualExchange, key: Hashable) -> tuple[Tensor, ...]:
        ctx.exchange, ctx.key = exchange, key
        return tuple(x.view_as(x) for _ in range(exchange.world_size))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        exchange = ctx.exchange
        with torch.no_grad():
            context = exchange._next_context(ctx.key)
            return exchange.run(exchange.transport, [grad.contiguous() for grad in grads], context)[0], None, None
