"""Ranks in threads over shared memory: every operation equals its definition, in pieces too, and a dead peer is told of."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from evenflow.base.errors import WireError
from evenflow.comm.collectives.shared_memory import SharedMemoryCollective, is_supported

pytestmark = pytest.mark.skipif(not is_supported(), reason="Linux on x86 only")


class Introduction:
    """What the ranks need of an inner collective, among threads."""

    def __init__(self, shared: dict, rank: int, world_size: int, pid: int | None = None) -> None:
        self.shared, self.rank, self.world_size, self.pid = shared, rank, world_size, pid

    def all_gather(self, x):
        self.shared[self.rank] = torch.tensor([int(x[0]), self.pid or int(x[1])])
        self.barrier()
        everyone = torch.stack([self.shared[rank] for rank in range(self.world_size)])
        self.barrier()
        self.pid = None
        return everyone

    def barrier(self):
        self.shared["barrier"].wait(20)


def on_threads(world_size, function, slot_bytes=256, pids=None):
    shared = {"barrier": threading.Barrier(world_size)}
    before = set(Path("/dev/shm").glob("evenflow-*"))

    def one(rank):
        inner = Introduction(shared, rank, world_size, pids and pids[rank])
        return function(rank, SharedMemoryCollective(inner, slot_bytes))

    with ThreadPoolExecutor(world_size) as pool:
        results = list(pool.map(one, range(world_size)))
    assert set(Path("/dev/shm").glob("evenflow-*")) <= before
    return results


def given(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(rank))
    return (10 * x).to(dtype) if dtype in (torch.uint8, torch.int64) else x.to(dtype)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("width", [0, 1, 5, 300])
def test_operations_are_what_they_say_many_times_over(world_size, dtype, width):
    shape = (world_size, 2, width)

    def run(rank, group):
        found = []
        for turn in range(4):
            x = given(10 * turn + rank, shape, dtype).transpose(1, 2)
            found.append((group.all_reduce(x), group.all_gather(x), group.all_to_all(x), group.reduce_scatter(x)))
            group.barrier()
        return found

    results = on_threads(world_size, run)
    for turn in range(4):
        inputs = torch.stack([given(10 * turn + rank, shape, dtype).transpose(1, 2) for rank in range(world_size)])
        total = inputs.double().sum(0)
        tolerance = {"rtol": 2**-7, "atol": 2**-5} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-5}
        for rank, result in enumerate(results):
            reduced, gathered, exchanged, scattered = result[turn]
            torch.testing.assert_close(reduced.double(), total, **tolerance)
            assert torch.equal(reduced, results[0][turn][0]), "ranks hold different bits"
            assert torch.equal(gathered, inputs)
            assert torch.equal(exchanged, inputs[:, rank])
            torch.testing.assert_close(scattered.double(), total[rank], **tolerance)
            assert reduced.dtype == dtype


def test_too_little_memory_is_told_on_every_rank(monkeypatch):
    monkeypatch.setattr(SharedMemoryCollective, "_create", staticmethod(lambda path, size: (-1, "no space")))

    def run(rank):
        with pytest.raises(WireError, match="no space" if rank == 0 else "see rank 0"):
            SharedMemoryCollective(Introduction(shared, rank, 2))

    shared = {"barrier": threading.Barrier(2)}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))


def test_a_dead_peer_is_an_error_and_not_a_wait_for_ever():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    def run(rank, group):
        if rank == 0:
            with pytest.raises(WireError, match=f"rank 0 of 2: rank 1 is gone .process {process.pid}."):
                group.all_reduce(torch.ones(3))

    on_threads(2, run, pids=[os.getpid(), process.pid])
