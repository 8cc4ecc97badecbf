"""Data parallelism on real ranks: exact without compression, every byte booked, training converges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from evenflow.base.errors import ConfigError
from evenflow.comm import Collective
from evenflow.comm.collectives.links import Link
from evenflow.comm.data_parallel.ddp import compress_ddp
from evenflow.comm.data_parallel.fsdp import compress_fsdp

WORLD = 2
DDP_SPECS = ("none", "bf16", "int8-g32", "ef(int4-g32)", "ef(topk:0.05)/one-shot", "ef(powersgd:4)", "q8", "randomk-shared:0.5")


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))


def batch(step: int, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of a step: a rank's half, or all of them. The label is which quarter of the input is largest."""
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
    labels = x.view(32, 4, 4).sum(2).argmax(1)
    return (x, labels) if rank is None else (x.chunk(WORLD)[rank], labels.chunk(WORLD)[rank])


def train(model: nn.Module, steps: int, rank: int | None) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    losses = []
    for step in range(steps):
        x, labels = batch(step, rank)
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def final_loss(model: nn.Module) -> float:
    x, labels = batch(10_000)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), labels))


def weights_of(model: nn.Module) -> Tensor:
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in whole])


def are_equal_on_all_ranks(x: Tensor) -> bool:
    everybody = [torch.empty_like(x) for _ in range(WORLD)]
    dist.all_gather(everybody, x.contiguous())
    return all(torch.equal(everybody[0], other) for other in everybody)


def ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    report: dict[str, Any] = {}
    for spec in DDP_SPECS:
        # Small buckets: several a step, formed anew after the first one.
        model = DistributedDataParallel(make_model(), bucket_cap_mb=0.004)
        traffic = compress_ddp(model, spec)
        train(model, 60, rank)
        traffic.ledger.check_integrity()
        report[f"ddp {spec}"] = {
            "loss": final_loss(model.module),
            "bytes": traffic.ledger.by_site["dp.gradients"].counted / 60,
            "equal": are_equal_on_all_ranks(weights_of(model)),
            "weights": weights_of(model)[:40].tolist(),
        }
    model = DistributedDataParallel(make_model())
    traffic = compress_ddp(model, "topk:0.01")
    traffic.switch.is_on = False
    train(model, 2, rank)
    report["off"] = traffic.ledger.by_site["dp.gradients"].counted / 2
    for weights, gradients in (("none", "none"), ("int8-g32", "ef(int4-g32)"), ("bf16", "int8-g32")):
        report[f"fsdp {weights} {gradients}"] = sharded(rank, weights, gradients)
    dist.destroy_process_group()
    if rank == 0:
        Path(folder, "report.json").write_text(json.dumps(report))


def sharded(rank: int, weights: str, gradients: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (WORLD,))
    model: Any = make_model()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    traffic = compress_fsdp(model, weights, gradients)
    train(model, 60, rank)
    traffic.ledger.check_integrity()
    return {
        "loss": final_loss(model),
        "equal": are_equal_on_all_ranks(weights_of(model)),
        "sites": {site: entry.counted / entry.exchanges for site, entry in traffic.ledger.by_site.items()},
        "weights": weights_of(model)[:40].tolist(),
    }


@pytest.mark.multiprocess
@pytest.mark.slow
def test_gradients_and_weights_travel_compressed(tmp_path: Path) -> None:
    mp.start_processes(ranks, args=(str(tmp_path),), nprocs=WORLD, start_method="spawn")
    report = json.loads((tmp_path / "report.json").read_text())
    single = make_model()
    train(single, 60, None)
    exact, start = final_loss(single), final_loss(make_model())
    number = sum(p.numel() for p in single.parameters())
    assert exact < 0.5 * start
    for spec in ("ddp none", "fsdp none none"):
        assert torch.allclose(torch.tensor(report[spec]["weights"]), weights_of(single)[:40], atol=1e-5), spec
    assert report["ddp none"]["bytes"] == pytest.approx(4 * number)
    assert report["ddp bf16"]["bytes"] == pytest.approx(2 * number)
    assert report["ddp int8-g32"]["bytes"] == pytest.approx(8.5 / 8 * number, rel=0.05)
    assert report["off"] == pytest.approx(4 * number)
    for name, entry in report.items():
        if name != "off":
            assert entry["equal"], f"{name}: the replicas drift apart"
            assert entry["loss"] < 0.6 * start, name
    dense, quantised = report["fsdp none none"]["sites"], report["fsdp int8-g32 ef(int4-g32)"]["sites"]
    assert quantised["dp.weights"] / dense["dp.weights"] == pytest.approx(8.5 / 32, rel=0.05)
    assert quantised["dp.gradients"] / dense["dp.gradients"] == pytest.approx(4.5 / 32, rel=0.05)


class OneRank:
    """The default group of a world of one."""

    def __enter__(self) -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def __exit__(self, *exception: object) -> None:
        dist.destroy_process_group()


def test_what_data_parallelism_cannot_take_is_refused() -> None:
    with OneRank():
        for spec, words in (("ae:8", "not trained"), ("caat:0.5", "sums all channels"), ("q9", "unknown compressor")):
            with pytest.raises(ConfigError, match=words):
                compress_ddp(DistributedDataParallel(make_model()), spec)
        model: Any = make_model()
        with pytest.raises(ConfigError, match="holds no module of fully_shard"):
            compress_fsdp(model)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        for options, words in (
            ({"weights": "q8"}, "shards have no rows"),
            ({"gradients": "powersgd:2"}, "shards have no rows"),
            ({"weights": "ef(int8-g32)"}, "gathered several times a step; allowed: int8-g32"),
            ({"gradients": "int8-g32/two-shot"}, "FSDP gathers and scatters; allowed: int8-g32"),
        ):
            with pytest.raises(ConfigError, match=words):
                compress_fsdp(model, **options)


def test_error_feedback_sends_in_the_end_what_a_message_left_out() -> None:
    """In a world of one a constant gradient must come out right on average: nothing is lost for good."""
    with OneRank():
        layer = nn.Linear(64, 1, bias=False)
        model = DistributedDataParallel(layer)
        traffic = compress_ddp(model, "ef(topk:0.1)/one-shot", link=Link.parse("unlimited"))
        x = torch.linspace(0.5, 1.5, 64)
        total = torch.zeros(64)
        for _ in range(200):
            layer.weight.grad = None
            model(x).sum().backward()
            assert layer.weight.grad is not None
            assert int((layer.weight.grad != 0).sum()) == 6
            total += layer.weight.grad[0]
        assert torch.allclose(total / 200, x, rtol=0.15)
        assert isinstance(traffic.collective.world_size, int)


def test_the_collective_of_a_shaped_link_is_the_groups_own() -> None:
    with OneRank():
        traffic = compress_ddp(DistributedDataParallel(make_model()), "int8-g32", link=Link.parse("1gbit"))
        collective: Collective = traffic.collective
        assert type(collective).__name__ == "EmulatedLink"
