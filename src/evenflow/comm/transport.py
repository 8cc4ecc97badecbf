"""How compressed tensors travel: all-reduce, one-shot, two-shot, reduce-scatter, gather. Not who carries them.

Each transport is a generator: it yields operations and is sent their results, and returns the decoded tensor. So the same
code runs on the ranks of a process group (``drive``) and on W virtual ranks in one process (``drive_together``), and both
give the same bits wherever the sum of floats does. Sums of decoded messages are taken in rank order on every rank, so
all ranks end with bit-identical results (partial channel synchronisation, which keeps channels private, excepted).

* all-reduce: linear compressors; the messages are summed on the way.
* one-shot: all-gather of messages, every rank decodes all and sums. W-1 messages sent per rank.
* two-shot: each rank owns 1/W of the tensor: all-to-all of encoded pieces, sum, encode again, all-gather. 2 (W-1)/W messages.
* scatter-sum and gather: the two halves of it, for sequence parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.comm.collectives.collective import Collective
from evenflow.comm.compressor import Algebra, Compressor, Context, Shape, num_elements, rows_and_width
from evenflow.comm.ledger import Kind, sent_bytes


@dataclass(frozen=True, slots=True)
class Operation:
    """One collective operation to carry out on ``tensor``: a message [bytes] uint8 or [n] float, or [W, ...] of W pieces."""

    kind: Kind
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Member:
    """The rank that a generator runs for, and the size of its group."""

    rank: int
    world_size: int


Steps = Generator[Operation, Tensor, Tensor]
Observer = Callable[[Operation, int], None]
"""Told about every operation and the world size before it is carried out."""


def all_reduce(x: Tensor, compressor: Compressor, member: Member, context: Context) -> Steps:
    """Sum float messages on the way. Linear compressors only; differentiable where they are."""
    rounds = compressor.reduce(x, Context((context.key, member.rank), context.step))
    try:
        message = next(rounds)
        while True:
            total = yield Operation(Kind.ALL_REDUCE, message)
            message = rounds.send(total)
    except StopIteration as done:
        return done.value


def one_shot(x: Tensor, compressor: Compressor, member: Member, context: Context) -> Steps:
    """Gather all messages and sum what they decode to, in rank order."""
    message = compressor.encode(x, Context((context.key, member.rank), context.step))
    messages = yield Operation(Kind.ALL_GATHER, message)
    total = _zeros(x.shape, x)
    for rank in range(member.world_size):
        compressor.add_decoded(messages[rank], total, x.dtype, Context((context.key, rank), context.step))
    return total.to(x.dtype)


def two_shot(x: Tensor, compressor: Compressor, member: Member, context: Context) -> Steps:
    """Scatter pieces, sum the own one, encode the sum again and gather."""
    own = yield from _scatter(_pieces(x, compressor, member.world_size), compressor, member, context)
    whole = yield from _gather(own.to(x.dtype), compressor, member, context)
    return whole.reshape(-1)[: x.numel()].view(x.shape)


def scatter_sum(x: Tensor, compressor: Compressor, member: Member, context: Context) -> Steps:
    """Return this rank's part of the sum along the first dimension, which must be divisible by the world size."""
    W = member.world_size
    if x.shape[0] % W:
        raise ConfigError(f"first dimension of {tuple(x.shape)} is not divisible by {W} ranks")
    pieces = x.reshape(W, x.shape[0] // W, *x.shape[1:])
    own = yield from _scatter(pieces, compressor, member, context)
    return own.to(x.dtype)


def gather(x: Tensor, compressor: Compressor, member: Member, context: Context) -> Steps:
    """Return all ranks' tensors one after the other along the first dimension."""
    whole = yield from _gather(x, compressor, member, context)
    return whole.reshape(-1, *x.shape[1:])


def _scatter(pieces: Tensor, compressor: Compressor, member: Member, context: Context) -> Steps:
    """Send piece w to rank w; return the sum [..] of the own pieces of all ranks, in at least fp32. pieces is [W, ...]."""
    sender = [Context((context.key, member.rank, w), context.step) for w in range(member.world_size)]
    if compressor.algebra is Algebra.LINEAR:
        messages = torch.stack([compressor.encode(piece, from_here) for piece, from_here in zip(pieces, sender)])
    else:
        size = compressor.wire_plan(pieces.shape[1:], pieces.dtype).payload_bytes
        messages = torch.empty(member.world_size, size, dtype=torch.uint8, device=pieces.device)
        for message, piece, from_here in zip(messages, pieces, sender):
            compressor.encode_into(message, piece, from_here)
    if _sums_on_the_way(compressor):
        total = yield Operation(Kind.REDUCE_SCATTER, messages)
        return compressor.decode(total, pieces.shape[1:], pieces.dtype, sender[member.rank])
    received = yield Operation(Kind.ALL_TO_ALL, messages)
    own = _zeros(pieces.shape[1:], pieces)
    for rank in range(member.world_size):
        compressor.add_decoded(received[rank], own, pieces.dtype, Context((context.key, rank, member.rank), context.step))
    return own


def _gather(own: Tensor, compressor: Compressor, member: Member, context: Context) -> Steps:
    """Encode ``own`` and return every rank's decoded tensor [W, ...]."""
    message = compressor.encode(own, Context((context.key, "gather", member.rank), context.step))
    messages = yield Operation(Kind.ALL_GATHER, message)
    whole = own.new_empty(member.world_size, *own.shape)
    for rank in range(member.world_size):
        compressor.decode_into(messages[rank], whole[rank], Context((context.key, "gather", rank), context.step))
    return whole


def _sums_on_the_way(compressor: Compressor) -> bool:
    return compressor.algebra is Algebra.LINEAR and compressor.rounds == 1


def _zeros(shape: Shape, like: Tensor) -> Tensor:
    return torch.zeros(tuple(shape), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def _pieces(x: Tensor, compressor: Compressor, world_size: int) -> Tensor:
    """Cut x into W equal pieces, filled up with zeros: [W, rows, width], or [W, n] if rows mean nothing."""
    shape = piece_shape(x.shape, compressor, world_size)
    size = num_elements(shape)
    missing = size * world_size - x.numel()
    flat = pad(x.reshape(-1), (0, missing)) if missing else x.reshape(-1)
    return flat.view(world_size, *shape)


def piece_shape(shape: Shape, compressor: Compressor, world_size: int) -> tuple[int, ...]:
    """Return the shape of each rank's piece in a two-shot exchange."""
    if compressor.by_rows:
        rows, width = rows_and_width(shape)
        return (-(-rows // world_size), width)
    return (-(-num_elements(shape) // world_size),)


@dataclass(frozen=True, slots=True)
class Transport:
    """A named generator and the operations it will yield."""

    name: str
    steps: Callable[[Tensor, Compressor, Member, Context], Steps]

    def operations(self, compressor: Compressor, shape: Shape, dtype: torch.dtype, world_size: int) -> list[tuple[Kind, int]]:
        """Return (kind, bytes of the input tensor) of every operation of one exchange. Pure: uses ``compressor.plan`` alone."""
        W = world_size
        if self.name == "all-reduce":
            return [(Kind.ALL_REDUCE, compressor.wire_plan(shape, dtype).payload_bytes)]
        if self.name in ("one-shot", "gather"):
            return [(Kind.ALL_GATHER, compressor.wire_plan(shape, dtype).payload_bytes)]
        if self.name == "scatter-sum":
            shape = (int(shape[0]) // W, *shape[1:])
        else:
            shape = piece_shape(shape, compressor, W)
        piece = compressor.wire_plan(shape, dtype).payload_bytes
        first = Kind.REDUCE_SCATTER if _sums_on_the_way(compressor) else Kind.ALL_TO_ALL
        operations = [(first, W * piece)]
        if self.name == "two-shot":
            operations.append((Kind.ALL_GATHER, piece))
        return operations

    def planned_bytes(self, compressor: Compressor, shape: Shape, dtype: torch.dtype, world_size: int) -> float:
        """Return the bytes one rank sends in one exchange."""
        return sum(sent_bytes(k, b, world_size) for k, b in self.operations(compressor, shape, dtype, world_size))


ALL_REDUCE = Transport("all-reduce", all_reduce)
ONE_SHOT = Transport("one-shot", one_shot)
TWO_SHOT = Transport("two-shot", two_shot)
SCATTER_SUM = Transport("scatter-sum", scatter_sum)
GATHER = Transport("gather", gather)
SUMS = {transport.name: transport for transport in (ALL_REDUCE, ONE_SHOT, TWO_SHOT)}
"""The transports a user may name."""


def get_transport(name: str | None, compressor: Compressor, world_size: int) -> Transport:
    """Return the transport of that name, or the default for this algebra and number of ranks.

    Linear compressors: all-reduce. Others: one-shot between two ranks, where it sends as many bytes as two-shot in half the
    operations and encodes once instead of twice, and for those whose sums cannot be encoded again; else two-shot.

    Raises RegistryError for an unknown name and ConfigError for an all-reduce of what cannot be added up.
    """
    if name is None:
        if compressor.algebra is Algebra.LINEAR:
            return ALL_REDUCE
        return TWO_SHOT if compressor.resends_sums and world_size > 2 else ONE_SHOT
    if name not in SUMS:
        raise RegistryError(f"unknown transport {name!r}; known: {', '.join(SUMS)}")
    if name == "all-reduce" and compressor.algebra is not Algebra.LINEAR:
        raise ConfigError(
            f"{compressor.spec}/all-reduce: messages of {compressor.spec} cannot be summed; allowed: one-shot, two-shot"
        )
    if name != "all-reduce" and (compressor.is_learned or compressor.spec.startswith("caat")):
        raise ConfigError(f"{compressor.spec}/{name}: {compressor.spec} needs all-reduce")
    return SUMS[name]


def _ignore(operation: Operation, world_size: int) -> None:
    return None


class _DifferentiableSum(torch.autograd.Function):
    """All-reduce whose output gradient is equal on all ranks, so that it is the gradient of each input."""

    @staticmethod
    def forward(ctx, x: Tensor, collective: Collective) -> Tensor:  # type: ignore[no-untyped-def]
        return collective.all_reduce(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return grad, None


def drive(steps: Steps, collective: Collective, observe: Observer = _ignore) -> Tensor:
    """Run a transport on a group: this rank's part."""
    try:
        operation = next(steps)
        while True:
            observe(operation, collective.world_size)
            if operation.kind is Kind.ALL_REDUCE:
                if operation.tensor.requires_grad:
                    result = _DifferentiableSum.apply(operation.tensor, collective)
                else:
                    result = collective.all_reduce(operation.tensor)
            elif operation.kind is Kind.ALL_GATHER:
                result = collective.all_gather(operation.tensor)
            elif operation.kind is Kind.ALL_TO_ALL:
                result = collective.all_to_all(operation.tensor)
            else:
                result = collective.reduce_scatter(operation.tensor)
            operation = steps.send(result)
    except StopIteration as done:
        return done.value


def drive_together(all_steps: Sequence[Steps], observe: Observer = _ignore) -> list[Tensor]:
    """Run a transport on W virtual ranks in this process, in lockstep; return every rank's result.

    Float sums are taken in rank order. ``observe`` is told about rank 0's operations only.
    """
    W = len(all_steps)
    results: list[Tensor | None] = [None] * W
    outcome: list[Tensor] = []
    while True:
        operations: list[Operation] = []
        for rank, steps in enumerate(all_steps):
            try:
                operations.append(next(steps) if results[rank] is None else steps.send(results[rank]))  # type: ignore[arg-type]
            except StopIteration as done:
                outcome.append(done.value)
        if outcome:
            assert len(outcome) == W, "virtual ranks left step"
            return outcome
        observe(operations[0], W)
        kinds = {operation.kind for operation in operations}
        assert len(kinds) == 1, f"virtual ranks left step: {kinds}"
        results = list(_carry_out(operations))


def _carry_out(operations: Sequence[Operation]) -> Sequence[Tensor]:
    tensors, W = [operation.tensor for operation in operations], len(operations)
    kind = operations[0].kind
    if kind is Kind.ALL_REDUCE:
        total = _ordered_sum(tensors)
        return [total] + [total.clone() for _ in range(W - 1)]
    if kind is Kind.ALL_GATHER:
        return [torch.stack(tensors)] * W
    if kind is Kind.ALL_TO_ALL:
        return [torch.stack([tensor[rank] for tensor in tensors]) for rank in range(W)]
    return [_ordered_sum([tensor[rank] for tensor in tensors]) for rank in range(W)]


def _ordered_sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0] + tensors[1] if len(tensors) > 1 else tensors[0].clone()
    for tensor in tensors[2:]:
        total = total + tensor
    return total
