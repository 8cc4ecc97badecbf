"""Sequence parallelism on two real ranks: equal to the single process, compressed where it was asked for."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from evenflow.base.errors import ConfigError
from evenflow.comm import Ledger, TorchCollective
from evenflow.mcbench.names import MODELS
from evenflow.mcbench.runs.benchmark_models import make_model
from evenflow.mcbench.runs.build import init_group
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.split.attach import compress_model, emulate_model
from evenflow.mcbench.split.parity import check_parity, first_tensor
from evenflow.mcbench.split.rules import CompressionRules


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name == "vit-tiny":
        return {"pixel_values": torch.randn(2, 1, 8, 8, generator=generator)}
    return {"input_ids": torch.randint(3, 90, (2, 9), generator=generator)}


def two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    init_group(rank, 2, Path(folder, "rendezvous"))
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("pp", "tp"))
    group = TorchCollective(mesh["tp"].get_group())
    report: dict[str, Any] = {}
    for name in MODELS:
        parity = check_parity(make_model(name, 0), lambda m: compress_model(m, mesh, "sp=none"), inputs_of(name), group)
        report[name] = max(parity.output_error, parity.gradient_error)
    model, inputs = make_model("bert-tiny", 0), inputs_of("bert-tiny")
    sent: dict[str, dict[str, Any]] = {}
    for spec in ("sp=none", "sp=int8-g32", "sp.forward=int8-g32"):
        ledger = Ledger()
        split = compress_model(copy.deepcopy(model), mesh, spec, ledger=ledger).train()
        output = first_tensor(split(**inputs))
        output.square().sum().backward()
        ledger.check_integrity()
        sent[spec] = {site: entry.counted for site, entry in ledger.by_site.items()}
        # Every rank must hold the same output, or replicas drift apart.
        both = group.all_gather(output.detach())
        sent[spec]["difference of ranks"] = float((both[0] - both[1]).abs().max())
        sent[spec]["output"] = output.detach().tolist()
    report["sent"] = sent
    dist.destroy_process_group()
    if rank == 0:
        Path(folder, "report.json").write_text(json.dumps(report))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_ranks_with_a_split_sequence_equal_the_single_process(tmp_path: Path) -> None:
    """Odd lengths included: 9 words and 17 patches over two ranks."""
    mp.start_processes(two_ranks, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    report = json.loads((tmp_path / "report.json").read_text())
    for name in MODELS:
        assert report[name] < 1e-5, name
    dense, both, forward = (report["sent"][spec] for spec in ("sp=none", "sp=int8-g32", "sp.forward=int8-g32"))
    assert both["sp.forward"] / dense["sp.forward"] == pytest.approx(8.5 / 32)
    assert both["sp.backward"] / dense["sp.backward"] == pytest.approx(8.5 / 32)
    assert forward["sp.forward"] == both["sp.forward"]
    assert forward["sp.backward"] == dense["sp.backward"]
    for one in (dense, both, forward):
        assert one["difference of ranks"] == 0.0
    assert forward["output"] != dense["output"]


def test_what_cannot_be_split_is_said() -> None:
    with pytest.raises(ConfigError, match="in the place of tp's sums"):
        CompressionRules.parse("sp=q8; tp=q8")
    with pytest.raises(ConfigError, match="not emulated"):
        emulate_model(make_model("vit-tiny", 0), 2, "sp=int8-g32")
    with pytest.raises(ConfigError, match="leave out --emulate"):
        RunConfig(tp=2, compress="sp=q8", emulate=True)
    with pytest.raises(ConfigError, match="only one rank at that site"):
        RunConfig(compress="sp=q8")
