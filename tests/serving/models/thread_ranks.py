"""Tensor-parallel ranks as threads of one process, and a collective that is a meeting of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


class Meeting:
    """Where the threads of one group hand each other tensors."""

    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size, timeout=60)
        self.given: list = [None] * world_size


class ThreadCollective:
    """``evenflow.comm.Collective`` among threads. Sums are taken in rank order, so all ranks end with the same bits."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.world_size = meeting, rank, len(meeting.given)

    def exchange(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.meeting.given[self.rank] = x
        self.meeting.barrier.wait()
        everyone = list(self.meeting.given)
        assert len({(t.shape, t.dtype) for t in everyone}) == 1, "ranks left step"
        self.meeting.barrier.wait()
        return everyone

    def all_gather(self, x):
        return torch.stack(self.exchange(x.clone()))

    def all_reduce(self, x):
        everyone = self.exchange(x.clone())
        total = everyone[0].clone()
        for other in everyone[1:]:
            total += other
        return total

    def all_to_all(self, x):
        return torch.stack([other[self.rank] for other in self.exchange(x.clone())])

    def reduce_scatter(self, x):
        return self.all_reduce(x)[self.rank]


def on_ranks(world_size, function):
    """[function(rank, collective) of every rank]. The first error of any rank is raised, the others are let go."""
    meeting = Meeting(world_size)

    def one(rank):
        try:
            return function(rank, ThreadCollective(meeting, rank))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(world_size) as pool:
        futures = [pool.submit(one, rank) for rank in range(world_size)]
    errors = [future.exception() for future in futures if future.exception()]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
