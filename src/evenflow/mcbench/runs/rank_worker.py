"""What one rank does in a run: build, check parity, train every seed, evaluate, measure.

The same functions serve a single process, virtual ranks and real ranks. Partial results are handed to ``emit`` as soon
as they exist, so that a run that breaks keeps what it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from evenflow.base.errors import ConfigError, ModelError
from evenflow.comm import Collective, Ledger, TorchCollective
from evenflow.comm.collectives.links import Link
from evenflow.comm.collectives.stopwatch import Stopwatch
from evenflow.mcbench.names import MODELS
from evenflow.mcbench.runs.benchmark_models import load_model, make_model
from evenflow.mcbench.runs.measure import measure
from evenflow.mcbench.runs.pretrain import Backbones, pretraining_of, start_from
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.runs.trainer import Schedule, batches, evaluate, train
from evenflow.mcbench.split.attach import attach, compression_of
from evenflow.mcbench.split.boundary import emulate_boundaries, width_of
from evenflow.mcbench.split.coders import Coders
from evenflow.mcbench.split.parity import TOLERANCE, check_parity, first_tensor, gathered
from evenflow.mcbench.split.pipeline import (
    CompressedPipelineStage,
    StageModule,
    make_schedule,
    reduce_tied_gradients,
    tied_parameters,
)
from evenflow.mcbench.split.rules import Policy
from evenflow.mcbench.split.wiring import GroupWiring, VirtualWiring
from evenflow.mcbench.tasks.load import load_task
from evenflow.mcbench.tasks.scores import loss_of, scores
from evenflow.mcbench.tasks.task import Task

Emit = Callable[[str, Any], None]
"""Takes partial results: what it is, and its value."""


def build_model(config: RunConfig, task: Task, seed: int) -> nn.Module:
    """Return the run's model before it is split. Equal on all ranks for equal seeds."""
    name = config.model or task.default_model
    if name in MODELS:
        return make_model(
            name,
            seed,
            num_labels=task.num_labels,
            vocab_size=task.vocab_size,
            max_length=max(task.length, 16),
            **config.sizes(),
        )
    torch.manual_seed(seed)
    return load_model(name, task.kind, task.num_labels)


def task_of(config: RunConfig) -> Task:
    """Load the run's task."""
    folder = config.model if config.model and config.model not in MODELS else None
    return load_task(config.task, config.data_root or None, folder)


def virtual_model(
    config: RunConfig, task: Task, seed: int, backbones: Backbones, emit: Emit = lambda kind, value: None
) -> nn.Module:
    """Return the run's model with its virtual exchanges and boundaries, pre-trained if the run asks for it."""
    state = pretrained(config, seed, backbones, emit) if config.pretrain else None
    model = build_model(config, task, seed)
    if state is not None:
        start_from(model, state)
    attach(model, config.policy(), VirtualWiring(config.tp))
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
    compression, schedule = compression_of(model), before.training().over(len(task.train))
    observe = pulse(emit, seed, schedule.num_steps, f"pre-training on {task.name}")
    train(model, task, schedule, seed, compression.advance, compression.name_batch, observe)
    return backbones.keep(before, seed, model)


def run_virtual(config: RunConfig, emit: Emit, backbones: Backbones) -> None:
    """Train all seeds in this process, with virtual ranks if the run has any."""
    task = task_of(config)
    schedule = config.training().over(len(task.train))
    index = torch.arange(2)
    inputs, _ = task.train.batch(index)
    if config.tp > 1:
        dense = Policy.parse("none", config.layers, config.modules)
        parity = check_parity(build_model(config, task, 0), lambda m: attach(m, dense, VirtualWiring(config.tp)), inputs)
        emit("parity", {"output_error": parity.output_error, "gradient_error": parity.gradient_error})
    for seed in range(config.seeds):
        model = virtual_model(config, task, seed, backbones, emit)
        compression = compression_of(model)
        observe = pulse(emit, seed, schedule.num_steps)
        last_loss = train(model, task, schedule, seed, compression.advance, compression.name_batch, observe)
        sites = {
            site: {"planned": entry.planned / schedule.num_steps, "counted": entry.counted / schedule.num_steps}
            for site, entry in sorted(compression.ledger.by_site.items())
            if entry.counted
        }
        compression.ledger.check_integrity()
        result = evaluate_both(partial(evaluate, model, task, name_batch=compression.name_batch), compression)
        emit("seed", {"seed": seed, "scores": result, "train_loss": last_loss})
        emit("bytes_per_step", sites)


def pulse(emit: Emit, seed: int, num_steps: int, what: str = "training", every_s: float = 20.0) -> Callable[[int, float], None]:
    """Return a function that is told (step, loss) and emits them now and then, so that a long run is seen to go on."""
    last = time.monotonic()

    def observe(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            emit("step", {"what": what, "seed": seed, "step": step + 1, "num_steps": num_steps, "loss": loss})

    return observe


def evaluate_both(test: Callable[[], dict[str, float]], compression: Any) -> dict[str, dict[str, float]]:
    """Return the scores with compression on and off at evaluation."""
    result = {}
    for name, on in (("compressed", True), ("dense", False)):
        compression.is_forced = on
        result[name] = test()
    compression.is_forced = None
    return result


@dataclass
class Place:
    """Where this rank stands in the mesh."""

    mesh: DeviceMesh
    tp: Collective
    pp: TorchCollective

    @staticmethod
    def of(config: RunConfig) -> Place:
        """Return this rank's place; the default group must exist. Raises ConfigError for another world size."""
        if dist.get_world_size() != config.world_size:
            raise ConfigError(f"{dist.get_world_size()} ranks were started; tp x pp = {config.tp} x {config.pp}")
        mesh = init_device_mesh("cpu", (config.pp, config.tp), mesh_dim_names=("pp", "tp"))
        return Place(mesh, TorchCollective(mesh["tp"].get_group()), TorchCollective(mesh["pp"].get_group()))


def run_rank(config: RunConfig, emit: Emit, link: Link, interface: str = "") -> None:
    """Train and measure as one rank of an initialised default group. ``link`` shapes tensor parallelism by token bucket.

    ``interface`` is a network interface of this rank alone, whose counters are reported with the measurement.
    """
    task, place = task_of(config), Place.of(config)
    schedule = config.training().over(len(task.train))
    inputs, _ = task.train.batch(torch.arange(2))
    if config.tp > 1:
        is_split = config.policy().is_sequence_parallel
        dense = Policy.parse("sp=none" if is_split else "none", config.layers, config.modules)
        model = build_model(config, task, 0)
        parity = check_parity(model, lambda m: attach(m, dense, GroupWiring(place.tp)), inputs, place.tp)
        emit("parity", {"output_error": parity.output_error, "gradient_error": parity.gradient_error})
    if config.pp > 1:
        emit("pipeline_parity", check_pipeline_parity(config, task, place))
    for seed in range(config.seeds):
        trainee = Trainee(config, task, schedule, place, seed, link)
        observe = pulse(emit, seed, schedule.num_steps)
        for count, (number, index) in enumerate(batches(task.train, schedule, seed)):
            trainee.step(number, index)
            observe(count, trainee.last_loss)
        result = evaluate_both(trainee.evaluate, trainee.compression)
        emit("seed", {"seed": seed, "scores": result, "train_loss": trainee.last_loss})
    trainee = Trainee(config, task, schedule, place, 0, link)
    index = torch.arange(min(schedule.batch_size, len(task.train)))
    if config.timed_steps:
        step = partial(trainee.step, 0, index)
        measured = measure(step, trainee.stopwatch, trainee.ledger, config.timed_steps, interface=interface)
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


def check_pipeline_parity(config: RunConfig, task: Task, place: Place) -> dict[str, float]:
    """Compare one uncompressed pipelined batch with the single model: loss and every gradient. Raises ModelError."""
    schedule = config.training()
    dense = replace(config, compress="none", gradient="")
    trainee = Trainee(dense, task, schedule, place, 0, Link.parse("unlimited"))
    index = torch.arange(min(schedule.batch_size, len(task.train)))
    inputs, labels = task.train.batch(index)
    trainee.module.eval()  # no dropout: stages and the single model would draw different masks
    trainee._pipelined(inputs, labels, 0, is_training=True)
    single = build_model(config, task, 0).eval()
    loss = loss_of(task, first_tensor(single(**inputs)), labels)
    loss.backward()
    expected = {name: p.grad for name, p in single.named_parameters() if p.grad is not None}
    largest = max(float(grad.abs().max()) for grad in expected.values())
    worst = abs(trainee.last_loss - float(loss.detach())) / abs(float(loss.detach())) if place.pp.rank == config.pp - 1 else 0.0
    assert isinstance(trainee.module, StageModule)
    for name, parameter in trainee.module.model.named_parameters():
        if parameter.grad is None or name not in expected:
            continue
        whole = gathered(parameter.grad, expected[name].shape, place.tp)
        worst = max(worst, float((whole - expected[name]).abs().max()) / largest)
    error = torch.tensor([worst])
    dist.all_reduce(error, op=dist.ReduceOp.MAX)
    if float(error) > TOLERANCE:
        raise ModelError(
            f"parity: the uncompressed pipeline differs from the single model by {float(error):.1e}; allowed: {TOLERANCE:.0e}"
        )
    return {"error": float(error)}


class Trainee:
    """One rank's model with its optimiser, pipelined or not."""

    def __init__(self, config: RunConfig, task: Task, schedule: Schedule, place: Place, seed: int, link: Link) -> None:
        self.config, self.task, self.schedule, self.place = config, task, schedule, place
        self.stopwatch, self.ledger = Stopwatch(is_running=False), Ledger()
        model = build_model(config, task, seed)
        self.tied = tied_parameters(model) if config.pp > 1 else []
        attach(model, config.policy(), GroupWiring(place.tp, link, self.stopwatch), self.ledger, self.stopwatch)
        self.compression = compression_of(model)
        self.number = 0
        self.last_loss = 0.0
        self.stages: dict[tuple[int, bool], tuple[CompressedPipelineStage, Any]] = {}
        self.module: nn.Module = model
        if config.pp > 1:
            policy = config.policy()
            coders = Coders(policy, place.pp.rank, config.pp, width_of(model), next(model.parameters()))
            self.module = StageModule(model, place.pp.rank, config.pp, self.compression, coders)
        self.optimizer = schedule.optimizer(self.module)

    def step(self, batch: int, index: Tensor) -> None:
        """Train on one batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.number)
        self.module.train()
        inputs, labels = self.task.train.batch(index)
        if self.schedule.fixed_batches:
            self.compression.name_batch(batch)
        if self.config.pp > 1:
            self._pipelined(inputs, labels, batch, is_training=True)
        else:
            with self.stopwatch.part("forward"):
                loss = loss_of(self.task, first_tensor(self.module(**inputs)), labels)
            with self.stopwatch.part("backward"):
                loss.backward()
            self.last_loss = float(loss.detach())
        with self.stopwatch.part("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.number += 1
        self.compression.advance()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the scores over the test split; on ranks without logits, an empty dictionary."""
        if self.config.pp == 1:
            return evaluate(self.module, self.task, name_batch=self.compression.name_batch)
        self.module.eval()
        size = self.schedule.batch_size
        logits = []
        count = len(self.task.test)
        for start in range(0, count, size):
            # The last batch is filled up from the front: pipelines want equal shapes.
            index = torch.arange(start, start + size) % count
            inputs, labels = self.task.test.batch(index)
            output = self._pipelined(inputs, labels, -1 - start, is_training=False)
            if output is not None:
                logits.append(output)
        if not logits:
            return {}
        return scores(self.task, torch.cat(logits)[:count], self.task.test.labels)

    def _pipelined(self, inputs: dict[str, Tensor], labels: Tensor, batch: int, is_training: bool) -> Tensor | None:
        self.compression.switch(is_training)
        stage, schedule = self._stage(inputs, labels)
        stage.begin(self.number, batch, self.compression.is_on)
        main = next(iter(inputs.values()))
        run = schedule.step if is_training else schedule.eval
        arguments = (main,) if stage.is_first else ()
        losses: list[Tensor] = []
        target = {"target": labels, "losses": losses} if stage.is_last else {}
        with self.stopwatch.part("pipeline"):
            output = run(*arguments, **inputs, **target)
        if is_training:
            if losses:
                self.last_loss = float(torch.stack(losses).detach().mean())
            assert isinstance(self.module, StageModule)
            reduce_tied_gradients(self.module, self.tied, self.place.pp)
            if self.module.coders is not None:
                self.module.coders.reduce_gradients(self.place.pp)
        return output.detach() if stage.is_last else None

    def _stage(self, inputs: dict[str, Tensor], labels: Tensor) -> tuple[CompressedPipelineStage, Any]:
        size = len(labels)
        key = (size, self.compression.is_on)
        if key not in self.stages:
            if size % self.config.microbatches:
                raise ConfigError(f"batch of {size} cannot be cut into {self.config.microbatches} micro-batches")
            part = {name: value[: size // self.config.microbatches] for name, value in inputs.items()}
            hidden, output = self._shapes(part)
            stage = CompressedPipelineStage(
                self.module,
                self.place.pp.rank,
                self.config.pp,
                self.place.mesh["pp"].get_group(),
                hidden,
                output,
                self.config.policy(),
                self.ledger,
                self.config.microbatches,
            )
            schedule = make_schedule(self.config.schedule, stage, lambda y, target: loss_of(self.task, y, target))
            self.stages[key] = (stage, schedule)
        return self.stages[key]

    def _shapes(self, part: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return examples of what this stage takes and gives, for one micro-batch."""
        single = build_model(self.config, self.task, 0)
        with torch.no_grad():
            logits = first_tensor(single(**part))
            states = single(**part, output_hidden_states=True).hidden_states[0]
        module = self.module
        assert isinstance(module, StageModule)
        module.hidden_shape = states.shape
        between = [torch.empty_like(states).requires_grad_() for _ in range(2)]
        if module.active_coders is not None:
            between = [module.active_coders.message_like(states) for _ in range(2)]
        given = next(iter(part.values())) if module.is_first else between[0]
        return given, (logits.requires_grad_() if module.is_last else between[1])


def init_group(rank: int, world_size: int, rendezvous: Path) -> None:
    """Join the default gloo group through a file."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)


__all__ = ["Trainee", "build_model", "init_group", "run_rank", "run_virtual", "task_of"]
