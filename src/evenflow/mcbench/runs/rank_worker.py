"""What one rank does in a run: build, check parity, train every seed, evaluate, measure.

The same functions serve a single process, virtual ranks and real ranks. Partial results are handed to ``emit`` as soon
as they exist, so that a run that breaks keeps what it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evenflow.base.errors import ModelError, NonFiniteInput, TrainingDiverged
from evenflow.comm import Collective, Ledger
from evenflow.comm.collectives.links import Link
from evenflow.comm.collectives.stopwatch import Stopwatch
from evenflow.mcbench.runs.build import MeshGroups, build_model, task_of
from evenflow.mcbench.runs.data_parallel_trainee import DataParallelTrainee
from evenflow.mcbench.runs.measure import measure
from evenflow.mcbench.runs.pipeline_trainee import PipelineTrainee
from evenflow.mcbench.runs.precision import precision
from evenflow.mcbench.runs.pretrain import Backbones, pretraining_of, start_from
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.runs.trainer import ModelTrainee, Schedule, train
from evenflow.mcbench.split.attach import attach, compression_of
from evenflow.mcbench.split.boundary import emulate_boundaries
from evenflow.mcbench.split.dropout import check_random_state
from evenflow.mcbench.split.parity import check_parity, gathered
from evenflow.mcbench.split.rules import CompressionRules
from evenflow.mcbench.split.wiring import Compression, GroupWiring, VirtualWiring
from evenflow.mcbench.tasks.scores import loss_of
from evenflow.mcbench.tasks.task import Task

Emit = Callable[[str, Any], None]
"""Takes partial results: what it is, and its value."""


def virtual_model(
    config: RunConfig, task: Task, seed: int, backbones: Backbones, emit: Emit = lambda kind, value: None
) -> nn.Module:
    """Return the run's model with its virtual exchanges and boundaries, pre-trained if the run asks for it."""
    state = pretrained(config, seed, backbones, emit) if config.pretrain else None
    model = build_model(config, task, seed)
    if state is not None:
        start_from(model, state)
    attach(model, config.rules(), VirtualWiring(config.tp))
    if config.pp > 1:
        emulate_boundaries(model, config.pp, compression_of(model), config.microbatches)
    return model


def pretrained(config: RunConfig, seed: int, backbones: Backbones, emit: Emit) -> dict[str, Tensor]:
    """Return the backbone that the pre-training of a run ends with."""
    before = pretraining_of(config)
    found = backbones.find(before, seed)
    if found is not None:
        return found
    task = task_of(before)
    model = virtual_model(before, task, seed, backbones)
    trainee = ModelTrainee(model, task, before.training().over(len(task.train)), compression_of(model), dtype=before.dtype)
    train(trainee, seed, pulse(emit, seed, trainee.schedule.num_steps, f"pre-training on {task.name}"))
    return backbones.keep(before, seed, model)


def run_virtual(config: RunConfig, emit: Emit, backbones: Backbones) -> None:
    """Train all seeds in this process, with virtual ranks if the run has any."""
    task = task_of(config)
    schedule = config.training().over(len(task.train))
    if config.tp > 1:
        dense = CompressionRules.parse("none", config.layers, config.modules)
        emit("parity", check_split(config, task, lambda m: attach(m, dense, VirtualWiring(config.tp))))
    for seed in range(config.seeds):
        model = virtual_model(config, task, seed, backbones, emit)
        compression = compression_of(model)
        trainee = ModelTrainee(model, task, schedule, compression, dtype=config.dtype)
        last_loss = train_or_diverge(trainee, seed, emit)
        if last_loss is None:
            continue
        sites = {
            site: {"planned": entry.planned / schedule.num_steps, "counted": entry.counted / schedule.num_steps}
            for site, entry in sorted(compression.ledger.by_site.items())
            if entry.counted
        }
        compression.ledger.check_integrity()
        result = evaluate_both(trainee.evaluate, compression)
        emit("seed", {"seed": seed, "scores": result, "train_loss": last_loss})
        emit("bytes_per_step", sites)


def check_split(
    config: RunConfig, task: Task, split: Callable[[nn.Module], nn.Module], group: Collective | None = None
) -> dict[str, float]:
    """Check the split model against the single one, in fp32 and in the run's own dtype. Raises ModelError.

    In fp32 a wrong split cannot hide behind rounding; in the run's dtype the sums over ranks are those of the run.
    """
    inputs, _ = task.train.batch(torch.arange(2))
    exact = precision("fp32")
    model = build_model(replace(config, dtype="fp32"), task, 0)
    parity = check_parity(model, split, inputs, group, exact.tolerance, exact.logits)
    found = {"output_error": parity.output_error, "gradient_error": parity.gradient_error}
    if config.dtype != "fp32":
        own = precision(config.dtype)
        parity = check_parity(build_model(config, task, 0), split, inputs, group, own.tolerance, own.logits)
        found |= {"output_error_in_dtype": parity.output_error, "gradient_error_in_dtype": parity.gradient_error}
    return found


def train_or_diverge(trainee: ModelTrainee, seed: int, emit: Emit) -> float | None:
    """Train one seed and return its last loss; None, and a record ``diverged``, if it is no longer finite.

    Raises TrainingDiverged where real ranks cannot go on: one of them has refused to send what is not finite, and the others
    wait for its message.
    """
    try:
        return train(trainee, seed, pulse(emit, seed, trainee.schedule.num_steps))
    except TrainingDiverged as error:
        emit("diverged", {"seed": seed, "step": error.step, "reason": str(error)})
        if isinstance(error.__cause__, NonFiniteInput) and dist.is_initialized():
            raise
        return None


def pulse(emit: Emit, seed: int, num_steps: int, what: str = "training", every_s: float = 20.0) -> Callable[[int, float], None]:
    """Return a function that is told (step, loss) and emits them now and then, so that a long run is seen to go on."""
    last = time.monotonic()

    def observe(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            emit("step", {"what": what, "seed": seed, "step": step + 1, "num_steps": num_steps, "loss": loss})

    return observe


def evaluate_both(test: Callable[[], dict[str, float]], compression: Compression | None) -> dict[str, dict[str, float]]:
    """Return the scores with compression on and off at evaluation."""
    assert compression is not None
    result = {}
    for name, on in (("compressed", True), ("dense", False)):
        compression.is_forced = on
        result[name] = test()
    compression.is_forced = None
    return result


def make_trainee(config: RunConfig, task: Task, schedule: Schedule, groups: MeshGroups, seed: int, link: Link) -> ModelTrainee:
    """Return this rank's part of the run's model, with its exchanges and its optimiser."""
    stopwatch = Stopwatch(is_running=False)
    model = build_model(config, task, seed)
    torch.manual_seed(seed)  # loading may draw numbers, and dropout needs the same ones on all tensor-parallel ranks
    check_random_state(model, groups.tp)
    attach(model, config.rules(), GroupWiring(groups.tp, link, stopwatch), Ledger(), stopwatch)
    compression = compression_of(model)
    if config.dp > 1:
        return DataParallelTrainee(model, task, schedule, compression, stopwatch, config.dtype, groups.dp, link)
    if config.pp > 1:
        return PipelineTrainee(config, task, schedule, groups, model, compression, stopwatch)
    return ModelTrainee(model, task, schedule, compression, stopwatch, config.dtype)


def ledger_of(trainee: ModelTrainee) -> Ledger:
    """Return the books of a trainee's exchanges."""
    assert trainee.compression is not None
    return trainee.compression.ledger


def run_rank(config: RunConfig, emit: Emit, link: Link, interface: str = "") -> None:
    """Train and measure as one rank of an initialised default group. ``link`` shapes tensor parallelism by token bucket.

    ``interface`` is a network interface of this rank alone, whose counters are reported with the measurement.
    """
    task, groups = task_of(config), MeshGroups.of(config)
    schedule = config.training().over(len(task.train))
    if config.tp > 1:
        is_split = config.rules().is_sequence_parallel
        dense = CompressionRules.parse("sp=none" if is_split else "none", config.layers, config.modules)
        emit("parity", check_split(config, task, lambda m: attach(m, dense, GroupWiring(groups.tp)), groups.tp))
    if config.pp > 1:
        emit("pipeline_parity", check_pipeline_parity(config, task, groups))
    for seed in range(config.seeds):
        trainee = make_trainee(config, task, schedule, groups, seed, link)
        last_loss = train_or_diverge(trainee, seed, emit)
        if last_loss is None:
            continue
        result = evaluate_both(trainee.evaluate, trainee.compression)
        emit("seed", {"seed": seed, "scores": result, "train_loss": last_loss})
    trainee = make_trainee(config, task, schedule, groups, 0, link)
    index = torch.arange(min(schedule.batch_size, len(task.train)))
    if config.timed_steps:
        step = partial(trainee.step, 0, index)
        measured = measure(step, trainee.stopwatch, ledger_of(trainee), config.timed_steps, interface=interface)
        measured["bytes_per_step"] = busiest_rank(measured["bytes_per_step"])
        emit("measured", measured)


def busiest_rank(own: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return, for each site, the numbers of the rank that sends most there; sites where nothing is sent are left out."""
    everybody: list[dict[str, dict[str, float]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everybody, own)
    busiest: dict[str, dict[str, float]] = {}
    for one in everybody:
        for site, numbers in one.items():
            if numbers["counted"] > busiest.get(site, {"counted": 0.0})["counted"]:
                busiest[site] = numbers
    return busiest


def check_pipeline_parity(config: RunConfig, task: Task, groups: MeshGroups) -> dict[str, float]:
    """Compare one uncompressed pipelined batch with the single model: loss and every gradient. Raises ModelError."""
    schedule = config.training()
    dense = replace(config, compress="none", gradient="")
    trainee = make_trainee(dense, task, schedule, groups, 0, Link.parse("unlimited"))
    assert isinstance(trainee, PipelineTrainee)
    index = torch.arange(min(schedule.batch_size, len(task.train)))
    inputs, labels = task.train.batch(index)
    trainee.module.eval()  # no dropout: stages and the single model would draw different masks
    trainee.run_batch(inputs, labels, 0, is_training=True)
    single = build_model(config, task, 0).eval()
    loss = loss_of(task, trainee.precision.logits(single, inputs), labels)
    loss.backward()
    expected = {name: p.grad for name, p in single.named_parameters() if p.grad is not None}
    largest = max(float(grad.abs().max()) for grad in expected.values())
    worst = (
        abs(trainee.last_loss - float(loss.detach())) / abs(float(loss.detach())) if groups.pp.rank == config.pp - 1 else 0.0
    )
    for name, parameter in trainee.module.model.named_parameters():
        if parameter.grad is None or name not in expected:
            continue
        whole = gathered(parameter.grad, expected[name].shape, groups.tp)
        worst = max(worst, float((whole - expected[name]).abs().max()) / largest)
    error = torch.tensor([worst])
    dist.all_reduce(error, op=dist.ReduceOp.MAX)
    if float(error) > precision(config.dtype).tolerance:
        raise ModelError(
            f"parity: the uncompressed pipeline differs from the single model by {float(error):.1e}; allowed: "
            f"{precision(config.dtype).tolerance:.0e}"
        )
    return {"error": float(error)}
