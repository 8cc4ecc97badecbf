"""Pipelines: stages equal the single model in every family, gradients over boundaries by rule, learned boundaries train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from evenflow.base.errors import ConfigError
from evenflow.comm import GradientRule, Ledger, get_compressor
from evenflow.comm.collectives.links import Link
from evenflow.comm.switch import Switch
from evenflow.mcbench.runs.benchmark_models import make_model
from evenflow.mcbench.runs.build import MeshGroups, init_group
from evenflow.mcbench.runs.pretrain import Backbones
from evenflow.mcbench.runs.rank_worker import check_pipeline_parity, ledger_of, make_trainee, virtual_model
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.split.boundary import Boundary, Kept, boundary_rule
from evenflow.mcbench.split.parity import first_tensor
from evenflow.mcbench.split.pipeline import StageModule, refuse_learned
from evenflow.mcbench.split.rules import CompressionRules, parse_gradients
from evenflow.mcbench.tasks.load import load_task

FAMILIES = {
    "vit-tiny": "digits",
    "bert-tiny": "topics",
    "opt-tiny": "chars",
    "llama-tiny": "chars",
    "qwen-tiny": "chars",
    "t5-tiny": "words",
}


def rules_of(spec: str, gradient: str = "") -> CompressionRules:
    return CompressionRules.parse(spec, gradients=parse_gradients(gradient))


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_one_after_the_other_are_the_model(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (2, 9), generator=generator)
    inputs = {"pixel_values": torch.randn(2, 1, 8, 8, generator=generator)} if name == "vit-tiny" else {"input_ids": ids}
    expected = first_tensor(make_model(name, 0)(**inputs))
    x = torch.empty(0)
    for index in range(4):
        x = StageModule(make_model(name, 0), index, 4)(x, **inputs)
    assert torch.allclose(x, expected, atol=1e-5)


def through(boundary: Boundary, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    given = x.clone().requires_grad_()
    y = boundary(given)
    (y * weight).sum().backward()
    assert given.grad is not None
    return y.detach(), given.grad


def test_what_goes_back_over_a_boundary() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 3, 16, generator=generator), torch.randn(4, 3, 16, generator=generator)
    size = x.numel()

    ledger = Ledger()
    y, grad = through(Boundary(rules_of("pp.forward=topk:0.25", "masked"), ledger, Switch(), 0, 2), x, weight)
    assert torch.equal(grad != 0, y != 0)
    assert torch.equal(grad[y != 0], weight[y != 0])
    # A quarter of the values go back, without their indices.
    assert ledger.by_site["pp.backward"].counted == size / 4 * 4
    assert ledger.by_site["pp.forward"].counted == size / 4 * 8

    ledger = Ledger()
    _, grad = through(Boundary(rules_of("pp.forward=q4"), ledger, Switch(), 0, 1), x, weight)
    assert torch.equal(grad, weight)
    assert ledger.by_site["pp.backward"].counted == 4 * size

    _, grad = through(Boundary(rules_of("pp.forward=int8-g32", "same"), Ledger(), Switch(), 0, 1), x, weight)
    compressor = get_compressor("int8-g32")
    assert torch.equal(grad, compressor.decode(compressor.encode(weight), weight.shape, weight.dtype))

    ledger = Ledger()
    boundary = Boundary(rules_of("pp=ae:4"), ledger, Switch(), 0, 1)
    boundary.compressor.prepare(16, 1)
    encoder, decoder = boundary.compressor.parameters()
    _, grad = through(boundary, x, weight)
    assert torch.allclose(grad, weight @ decoder @ encoder, atol=1e-5)
    assert ledger.by_site["pp.backward"].counted == 4 * 3 * 4 * 4
    ledger.check_integrity()


def test_rules_that_contradict_each_other_are_refused() -> None:
    assert boundary_rule(rules_of("pp=ae:4")) is GradientRule.AUTOGRAD
    assert boundary_rule(rules_of("pp=topk:0.1", "pp=masked")) is GradientRule.MASKED
    assert boundary_rule(rules_of("tp=topk:0.1", "masked")) is GradientRule.STRAIGHT_THROUGH
    for spec, gradient, message in (
        ("pp.forward=ae:4", "masked", "can only be autograd"),
        ("pp.forward=q4", "autograd", "needs a linear compressor"),
        ("pp.forward=powersgd:4", "autograd", "needs a linear compressor"),
        ("pp.forward=ae:4; pp.backward=q8", "", "leave one of them out"),
        ("pp.forward=topk:0.1; pp.backward=q8", "masked", "leave one of them out"),
    ):
        with pytest.raises(ConfigError, match=message):
            boundary_rule(rules_of(spec, gradient))
    kept = Kept(torch.tensor([0.0, 2.0, 0.0, 1.0]))
    assert kept.encode(torch.arange(4.0)).tolist() == [1.0, 3.0]


def run_ranks(function: Callable[..., Any], folder: Path, count: int, *arguments: Any) -> dict[str, Any]:
    mp.start_processes(function, args=(str(folder), *arguments), nprocs=count, start_method="spawn")
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def parity_ranks(rank: int, folder: str, cases: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    tp, pp = cases[0]["tp"], cases[0]["pp"]
    init_group(rank, tp * pp, Path(folder, "rendezvous"))
    report = {}
    for case in cases:
        config = RunConfig(microbatches=4, batch=8, seeds=1, **case)
        report[f"{config.model}/{config.schedule}"] = check_pipeline_parity(
            config, load_task(config.task), MeshGroups.of(config)
        )["error"]
    dist.destroy_process_group()
    if rank == 0:
        Path(folder, "report.json").write_text(json.dumps(report))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("layout", [(1, 2), (2, 2)])
def test_pipelines_of_every_family_equal_the_single_process(tmp_path: Path, layout: tuple[int, int]) -> None:
    """Losses and all gradients: the last layer of a stage, tied embeddings and T5's shared position bias included."""
    tp, pp = layout
    cases = [
        {"task": task, "model": model, "tp": tp, "pp": pp, "schedule": schedule}
        for (model, task), schedule in zip(FAMILIES.items(), ("gpipe", "1f1b") * 3)
    ]
    report = run_ranks(parity_ranks, tmp_path, tp * pp, cases)
    assert len(report) == len(FAMILIES)
    assert max(report.values()) < 1e-5, report


@pytest.mark.slow
@pytest.mark.multiprocess
def test_dropout_of_a_local_model_does_not_fail_the_gate(tmp_path: Path) -> None:
    """Models from a hub have dropout: stages and the single model would draw different masks."""
    task = load_task("topics")
    sizes = {"num_labels": task.num_labels, "vocab_size": task.vocab_size, "max_length": task.length}
    model: Any = make_model("bert-tiny", 0, **sizes)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.3
    model.save_pretrained(tmp_path / "model")
    report = run_ranks(parity_ranks, tmp_path, 2, [{"task": "topics", "model": str(tmp_path / "model"), "tp": 1, "pp": 2}])
    assert max(report.values()) < 1e-5, report


LEARNED = ("pp.forward=ae:8", "pp.forward=subspace-learned:8", "pp.forward=topk:0.2|masked", "pp.forward=int8-g32|same")


def real_boundaries(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    init_group(rank, 2, Path(folder, "rendezvous"))
    report: dict[str, Any] = {}
    task = load_task("digits")
    for schedule_name in ("gpipe", "1f1b"):
        for case in LEARNED:
            spec, _, gradient = case.partition("|")
            config = boundary_config(spec, gradient, schedule_name)
            trainee = make_trainee(config, task, config.training(), MeshGroups.of(config), 0, Link.parse("unlimited"))
            losses = []
            for _ in range(3):
                trainee.step(0, torch.arange(8))
                losses.append(trainee.last_loss)
            sent = {site: entry.counted for site, entry in ledger_of(trainee).by_site.items() if site.startswith("pp")}
            ledger_of(trainee).check_integrity()
            parameters = [float(p.double().sum()) for p in trainee.module.coder_parameters]  # type: ignore[union-attr]
            everybody: list[Any] = [None, None]
            dist.all_gather_object(everybody, (losses, sent, parameters))
            report[f"{case}/{schedule_name}"] = everybody
    dist.destroy_process_group()
    if rank == 0:
        Path(folder, "report.json").write_text(json.dumps(report))


def boundary_config(spec: str, gradient: str, schedule: str, emulate: bool = False) -> RunConfig:
    return RunConfig(
        pp=2, compress=spec, gradient=gradient, schedule=schedule, microbatches=2, batch=8, steps=3, hidden=32, emulate=emulate
    )


@pytest.mark.slow
@pytest.mark.multiprocess
def test_real_boundaries_train_as_the_emulated_ones(tmp_path: Path) -> None:
    report = run_ranks(real_boundaries, tmp_path, 2)
    task = load_task("digits")
    for case in LEARNED:
        spec, _, gradient = case.partition("|")
        config = boundary_config(spec, gradient, "gpipe", emulate=True)
        model = virtual_model(config, task, 0, Backbones())
        optimizer = config.training().optimizer(model)
        expected = []
        for step in range(3):
            for group in optimizer.param_groups:
                group["lr"] = config.training().rate(step)
            inputs, labels = task.train.batch(torch.arange(8))
            loss = torch.nn.functional.cross_entropy(first_tensor(model.train()(**inputs)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            expected.append(float(loss.detach()))
        for schedule in ("gpipe", "1f1b"):
            (_, forward, first), (losses, backward, second) = report[f"{case}/{schedule}"]
            # Adam turns the rounding of gradients that are zero in exact arithmetic (those along R) into steps of full size.
            tolerance = 2e-2 if "subspace" in case else 1e-4
            assert losses == pytest.approx(expected, rel=tolerance), (case, schedule)
            assert forward["pp.forward"] > 0
            assert backward["pp.backward"] > 0
            assert first == pytest.approx(second, rel=1e-6), "both ends of a boundary hold the same parameters"
            if spec.endswith("ae:8"):
                assert forward["pp.forward"] == 3 * 8 * 17 * 8 * 4 == backward["pp.backward"]


def test_compressed_gradients_are_never_learned() -> None:
    with pytest.raises(ConfigError, match="cannot be trained"):
        refuse_learned("pp.backward", get_compressor("ef(ae:4)"))
