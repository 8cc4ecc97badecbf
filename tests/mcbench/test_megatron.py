"""Megatron-Core's row-parallel layer on two gloo ranks, as far as it runs without a GPU. Skipped where it is not installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from evenflow.base.errors import ConfigError
from evenflow.comm import Ledger
from evenflow.mcbench.runs.build import init_group
from evenflow.mcbench.split.megatron import compress_megatron

IS_THERE = importlib.util.find_spec("megatron") is not None


def two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    init_group(rank, 2, Path(folder, "rendezvous"))
    from megatron.core import parallel_state
    from megatron.core.model_parallel_config import ModelParallelConfig
    from megatron.core.tensor_parallel.layers import RowParallelLinear

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    config = ModelParallelConfig(tensor_model_parallel_size=2, use_cpu_initialization=True, gradient_accumulation_fusion=False)
    config.perform_initialization = True

    def layer() -> nn.Module:
        torch.manual_seed(3)
        made = RowParallelLinear(
            16, 64, config=config, init_method=nn.init.xavier_normal_, bias=True, input_is_parallel=True, skip_bias_add=False
        )
        return nn.ModuleDict({"linear_proj": made})

    x = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(0))[..., 8 * rank : 8 * rank + 8]
    report = {}
    given: Any = x.clone().requires_grad_()
    plain: Any = layer()
    expected, _ = plain["linear_proj"](given)
    expected.square().sum().backward()
    for spec in ("none", "tp.forward=none", "tp.forward=int8-g32/two-shot", "tp.forward=ae:8"):
        model: Any = layer()
        ledger = Ledger()
        learned = compress_megatron(model, spec, ledger=ledger)
        own: Any = x.clone().requires_grad_()
        output, bias = model["linear_proj"](own)
        output.square().sum().backward()
        assert bias is None
        report[spec] = {
            "output": float((output - expected).abs().max() / expected.abs().max()),
            "gradient": float((own.grad - given.grad).abs().max() / given.grad.abs().max()),
            "sent": ledger.by_site["tp.forward"].counted,
            "learned": sum(p.numel() for p in learned if p.grad is not None),
        }
    dist.destroy_process_group()
    if rank == 0:
        Path(folder, "report.json").write_text(json.dumps(report))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(not IS_THERE, reason="megatron-core is not installed")
def test_two_ranks_of_a_row_parallel_layer(tmp_path: Path) -> None:
    mp.start_processes(two_ranks, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    report = json.loads((tmp_path / "report.json").read_text())
    for spec in ("none", "tp.forward=none"):
        assert report[spec]["output"] < 1e-6
        assert report[spec]["gradient"] < 1e-6
    rough, dense = report["tp.forward=int8-g32/two-shot"], report["tp.forward=none"]
    assert 0 < rough["output"] < 0.02
    assert rough["sent"] / dense["sent"] == pytest.approx(8.5 / 32)
    assert report["tp.forward=ae:8"]["learned"] == 2 * 8 * 64


def test_what_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    if not IS_THERE:
        with pytest.raises(ConfigError, match="need megatron-core"):
            compress_megatron(model, "tp.forward=q8")
        return
    with pytest.raises(ConfigError, match=r"allowed on a Megatron model: tp\.forward"):
        compress_megatron(model, "tp=q8")
    with pytest.raises(ConfigError, match="matches no RowParallelLinear"):
        compress_megatron(model, "tp.forward=q8")
