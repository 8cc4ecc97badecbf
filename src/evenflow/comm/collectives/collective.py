"""The operations of a group of ranks: a protocol, a world of one, silence, and torch.distributed.

Knows tensors and ranks, nothing of compression. Wrappers with the same protocol shape the link (``links``) or take the
time (``stopwatch``); a serving engine or a model gets one of these objects and cannot tell which.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from evenflow.base.errors import WireError


class Collective(Protocol):
    """What the ranks of one group can do together.

    Every operation returns a new tensor, leaves its input alone, and must be called by all ranks with equal shapes and
    dtypes. Raises WireError when a peer is gone or the link broke.
    """

    rank: int
    world_size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum over ranks, bit-identical on all of them."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """Return [world_size, *x.shape]: every rank's tensor, in rank order."""
        ...

    def all_to_all(self, x: Tensor) -> Tensor:
        """Send x[r] to rank r; return [world_size, ...] with what each rank sent here. x is [world_size, ...]."""
        ...

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Return the sum over ranks of x[rank]. x is [world_size, ...]."""
        ...

    def send(self, x: Tensor, to_rank: int) -> None:
        """Send a tensor to one rank of the group."""
        ...

    def receive(self, like: Tensor, from_rank: int) -> Tensor:
        """Fill ``like`` with what that rank sends and return it."""
        ...

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        ...


class LocalCollective:
    """A world of one."""

    rank = 0
    world_size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x.clone()

    def all_gather(self, x: Tensor) -> Tensor:
        return x.clone()[None]

    def all_to_all(self, x: Tensor) -> Tensor:
        return x.clone()

    def reduce_scatter(self, x: Tensor) -> Tensor:
        return x[0].clone()

    def send(self, x: Tensor, to_rank: int) -> None:
        raise WireError("a world of one has nobody to send to")

    def receive(self, like: Tensor, from_rank: int) -> Tensor:
        raise WireError("a world of one has nobody to receive from")

    def barrier(self) -> None:
        return None


class SilentCollective:
    """A rank of a group whose peers send nothing: results have the right shape at once, and hold only the own part.

    For timing what a rank computes without any communication.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    def all_reduce(self, x: Tensor) -> Tensor:
        return x.detach().clone(memory_format=torch.contiguous_format)

    def all_gather(self, x: Tensor) -> Tensor:
        return x.detach().expand(self.world_size, *x.shape).clone(memory_format=torch.contiguous_format)

    def all_to_all(self, x: Tensor) -> Tensor:
        return x.detach().clone(memory_format=torch.contiguous_format)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        return x[self.rank].detach().clone(memory_format=torch.contiguous_format)

    def send(self, x: Tensor, to_rank: int) -> None:
        return None

    def receive(self, like: Tensor, from_rank: int) -> Tensor:
        return like.zero_()

    def barrier(self) -> None:
        return None


class TorchCollective:
    """A torch.distributed process group; the default group if none is given."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_initialized():
            raise WireError("torch.distributed is not initialised: start with torchrun, or call init_process_group first")
        self.group = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)

    def all_reduce(self, x: Tensor) -> Tensor:
        out = x.detach().clone(memory_format=torch.contiguous_format)
        with self._operation("all_reduce"):
            dist.all_reduce(out, group=self.group)
        return out

    def all_gather(self, x: Tensor) -> Tensor:
        out = x.new_empty(self.world_size, *x.shape)
        with self._operation("all_gather"):
            _all_gather(out.view(self.world_size * x.numel()), x.detach().reshape(-1).contiguous(), self.group)
        return out

    def all_to_all(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        with self._operation("all_to_all"):
            dist.all_to_all_single(out, x.detach().contiguous(), group=self.group)
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        out = x.new_empty(x.shape[1:])
        with self._operation("reduce_scatter"):
            _reduce_scatter(out.view(-1), x.detach().reshape(-1).contiguous(), self.group)
        return out

    def send(self, x: Tensor, to_rank: int) -> None:
        with self._operation("send"):
            dist.send(x.detach().contiguous(), group_dst=to_rank, group=self.group)

    def receive(self, like: Tensor, from_rank: int) -> Tensor:
        with self._operation("receive"):
            dist.recv(like, group_src=from_rank, group=self.group)
        return like

    def barrier(self) -> None:
        with self._operation("barrier"):
            dist.barrier(self.group)

    @contextmanager
    def _operation(self, name: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise WireError(
                f"rank {self.rank} of {self.world_size}: {name} failed; a peer ended or the link broke ({first})"
            ) from error


def _all_gather(out: Tensor, x: Tensor, group: dist.ProcessGroup | None) -> None:
    # torch 2.13 renamed both; the old names warn there and the new ones do not exist before.
    operation = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    operation(out, x, group=group)


def _reduce_scatter(out: Tensor, x: Tensor, group: dist.ProcessGroup | None) -> None:
    operation = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    operation(out, x, group=group)
