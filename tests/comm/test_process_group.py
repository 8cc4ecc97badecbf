"""Two gloo processes: equal to virtual ranks bit for bit, gradients by finite differences, a rank that dies."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from evenflow.base.errors import WireError
from evenflow.comm import (
    DEFAULT_SPECS,
    Context,
    Exchange,
    GradientRule,
    SilentCollective,
    TorchCollective,
    VirtualExchange,
    get_compressor,
    get_transport,
)
from evenflow.comm.transport import GATHER, SCATTER_SUM, SUMS, Member, drive_together

CASES = [
    ("none", "all-reduce"),
    ("none", "two-shot"),
    ("bf16", "all-reduce"),
    ("ae:16", "all-reduce"),
    ("powersgd:4", "all-reduce"),
    ("randomk-shared:0.1", "all-reduce"),
    ("srht:0.1", "all-reduce"),
    ("caat:0.5", "all-reduce"),
    ("int8-g32", "one-shot"),
    ("int8-g32", "two-shot"),
    ("int4-g32", "two-shot"),
    ("q4", "one-shot"),
    ("topk:0.1", "two-shot"),
    ("mxfp4", "two-shot"),
    ("ef(topk:0.1)", "two-shot"),
    ("aqsgd:4", "two-shot"),
    ("paper:T3", "one-shot"),
    ("paper:P1", "all-reduce"),
]
SHAPE = (4, 9, 96)
STEPS = 2


def given(rank: int, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(100 * rank + step)
    return torch.randn(SHAPE, generator=generator).to(dtype)


def start(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)


def two_ranks(rank: int, folder: str) -> None:
    start(rank, 2, folder)
    group = TorchCollective()
    results: dict[str, list[Tensor]] = {}
    for spec, name in CASES:
        compressor = get_compressor(spec)
        compressor.prepare(SHAPE[-1], seed=4)
        exchange = Exchange("tp.forward", compressor, group, transport=get_transport(name, compressor, 2))
        outputs = [exchange.sum(given(rank, step)) for step in range(STEPS)]
        exchange.ledger.check_integrity()
        results[f"{spec}/{name}"] = outputs
    halves = Exchange("sp", get_compressor("int8-g32"), group)
    part = halves.scatter(given(rank, 0))
    results["scatter"] = [part]
    results["gather"] = [halves.gather(part)]
    results["send"] = [send_both_ways(rank, group)]
    results["gradient"] = [torch.tensor(gradient_error(rank, group))]
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def send_both_ways(rank: int, group: TorchCollective) -> Tensor:
    exchange = Exchange("pp.forward", get_compressor("aqsgd:4"), group)
    x = given(0, 0)
    for _ in range(2):
        if rank == 0:
            exchange.send(x, 1, key=5)
            received = x
        else:
            received = exchange.receive(x.shape, x.dtype, 0, key=5)
    return received


def gradient_error(rank: int, group: TorchCollective) -> float:
    """Compare the gradient with central differences: both ranks move along a direction in lockstep, in fp64."""
    compressor = get_compressor("ae:5")
    compressor.prepare(12, seed=7, dtype=torch.float64)
    exchange = Exchange("tp.forward", compressor, group, rule=GradientRule.AUTOGRAD)
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(3, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    own = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    shared = torch.Generator().manual_seed(9)
    weight = torch.randn(3, 12, generator=shared, dtype=torch.float64)
    moves = [torch.randn(p.shape, generator=shared, dtype=torch.float64) for p in compressor.parameters()]

    def loss() -> Tensor:
        return (torch.tanh(exchange.reduce(x)) * weight).sum()

    loss().backward()
    assert x.grad is not None
    # The input's part differs by rank and is summed; parameters are replicated and their gradient is complete on each.
    slope = group.all_reduce((x.grad * own).sum())
    for parameter, move in zip(compressor.parameters(), moves):
        assert parameter.grad is not None
        slope = slope + (parameter.grad * move).sum()
    losses = []
    for epsilon in (1e-5, -1e-5):
        with torch.no_grad():
            x += epsilon * own
            for parameter, move in zip(compressor.parameters(), moves):
                parameter.add_(epsilon * move)
            losses.append(loss())
            x -= epsilon * own
            for parameter, move in zip(compressor.parameters(), moves):
                parameter.sub_(epsilon * move)
    numeric = (losses[0] - losses[1]) / 2e-5
    return float((numeric - slope).abs() / numeric.abs())


@pytest.mark.multiprocess
def test_two_processes_equal_two_virtual_ranks_bit_for_bit(tmp_path: Path) -> None:
    mp.start_processes(two_ranks, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for spec, name in CASES:
        compressor = get_compressor(spec)
        compressor.prepare(SHAPE[-1], seed=4)
        virtual = VirtualExchange("tp.forward", compressor, 2, transport=SUMS[name])
        for step in range(STEPS):
            with torch.no_grad():
                expected = virtual.run(virtual.transport, [given(0, step), given(1, step)], Context((), step + 1))
            for rank in range(2):
                assert torch.equal(ranks[rank][f"{spec}/{name}"][step], expected[rank]), (spec, name, step, rank)

    compressors = [get_compressor("int8-g32") for _ in range(2)]
    members = [Member(rank, 2) for rank in range(2)]
    xs = [given(rank, 0) for rank in range(2)]
    parts = drive_together([SCATTER_SUM.steps(x, c, p, Context((), 1)) for x, c, p in zip(xs, compressors, members)])
    whole = drive_together([GATHER.steps(x, c, p, Context((), 2)) for x, c, p in zip(parts, compressors, members)])
    for rank in range(2):
        assert torch.equal(ranks[rank]["scatter"][0], parts[rank])
        assert torch.equal(ranks[rank]["gather"][0], whole[rank])
        assert float(ranks[rank]["gradient"][0]) < 1e-7
    assert torch.allclose(ranks[0]["send"][0], ranks[1]["send"][0], atol=0.02)


def one_rank_dies(rank: int, folder: str) -> None:
    start(rank, 2, folder)
    exchange = Exchange("tp.forward", get_compressor("int8-g32"), TorchCollective())
    exchange.sum(given(rank, 0))
    if rank == 1:
        os._exit(0)
    # The first exchanges after a death may still find their bytes in the socket.
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            exchange.sum(given(rank, 1))
    except WireError as error:
        Path(folder, "message").write_text(str(error))
    os._exit(0)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_rank_that_dies_is_named_as_such(tmp_path: Path) -> None:
    mp.start_processes(one_rank_dies, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    message = (tmp_path / "message").read_text()
    assert "rank 0 of 2" in message
    assert "a peer ended" in message


class FakeGroup(TorchCollective):
    """Operations go through a process group that carries nothing; results are the own part, so that they can be decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.silent = SilentCollective(self.rank, self.world_size)
        self.sent = 0.0

    def all_reduce(self, x: Tensor) -> Tensor:
        self.sent += 2 * (self.world_size - 1) / self.world_size * super().all_reduce(x).nbytes
        return self.silent.all_reduce(x)

    def all_gather(self, x: Tensor) -> Tensor:
        self.sent += super().all_gather(x).nbytes - x.nbytes
        return self.silent.all_gather(x)

    def all_to_all(self, x: Tensor) -> Tensor:
        self.sent += super().all_to_all(x).nbytes * (self.world_size - 1) / self.world_size
        return self.silent.all_to_all(x)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        self.sent += super().reduce_scatter(x).nbytes * (self.world_size - 1)
        return self.silent.reduce_scatter(x)


@pytest.mark.parametrize("world_size", [2, 8, 64])
def test_exact_bytes_through_the_fake_group(world_size: int) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    shape = (64, 256)
    n, W = 64 * 256, world_size
    expected = {"none": 2 * (W - 1) / W * 4 * n, "bf16": 2 * (W - 1) / W * 2 * n, "int8-g32": 2 * (W - 1) / W * n * 34 / 32}
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=W)
    try:
        for spec in DEFAULT_SPECS:
            compressor, group = get_compressor(spec), FakeGroup()
            compressor.prepare(shape[-1])
            exchange = Exchange("tp.forward", compressor, group)
            exchange.sum(torch.ones(shape))
            exchange.ledger.check_integrity()
            counted = exchange.ledger.by_site["tp.forward"].counted
            assert counted == pytest.approx(group.sent, rel=1e-12), spec
            if spec in expected:
                assert counted == pytest.approx(expected[spec], rel=1e-12)
    finally:
        dist.destroy_process_group()


def test_a_group_must_exist() -> None:
    with pytest.raises(WireError, match="torchrun"):
        TorchCollective()
