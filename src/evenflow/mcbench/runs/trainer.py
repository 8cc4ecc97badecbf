"""Train and test one model on one task: one loop for single, virtual and real ranks, pipelined or not.

The loop (``train``) sees a ``Trainee`` and a seed. ``ModelTrainee`` is a whole model in this process, with or without virtual
ranks, or one tensor-parallel rank of it; ``pipeline_trainee`` has the one that is a pipeline stage. What a forward call sends
over the wire is the model's own affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from evenflow.base.errors import ConfigError, NonFiniteInput, TrainingDiverged
from evenflow.comm.collectives.stopwatch import Stopwatch
from evenflow.mcbench.names import GLUE_TASKS
from evenflow.mcbench.runs.precision import precision
from evenflow.mcbench.split.wiring import Compression
from evenflow.mcbench.tasks.scores import loss_of, scores
from evenflow.mcbench.tasks.task import Split, Task


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train."""

    num_steps: int = 200
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.065
    """Share of the steps over which the rate rises linearly; it falls along a cosine after that."""
    epochs: int = 0
    """Instead of ``num_steps``, where the size of the data is not known before it is read; see ``over``."""
    fixed_batches: bool = False
    """Form batches once and only shuffle their order: what deltas per sample need."""

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise ConfigError(f"schedule {self}: steps and batch must be 1 or more, the rate above 0")

    def over(self, num_rows: int) -> Schedule:
        """Return the schedule with its steps counted for data of so many rows."""
        if not self.epochs:
            return self
        return replace(self, num_steps=self.epochs * math.ceil(num_rows / self.batch_size), epochs=0)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return AdamW over the parameters of ``model``."""
        return torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def rate(self, step: int) -> float:
        """Return the learning rate of a 0-based step."""
        warm = max(1, int(self.warmup_share * self.num_steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / max(1, self.num_steps - warm)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


DEFAULT_SCHEDULES = {
    "digits": Schedule(200, 32, 3e-3),
    "chars": Schedule(300, 8, 1e-2),
    "digits-low": Schedule(150, 32, 3e-3),
    "digits-high": Schedule(40, 32, 1e-3),
    "words": Schedule(600, 16, 3e-3),
    "topics": Schedule(300, 16, 2e-3),
    "pairs": Schedule(400, 32, 1e-3),
    **{f"glue/{name}": Schedule(epochs=5 if name == "mrpc" else 3) for name in GLUE_TASKS},
}
FINE_TUNING_RATE = 5e-5
"""Learning rate of models from a folder, which are taken to be trained already; the paper's for BERT-large."""


def batches(split: Split, schedule: Schedule, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (batch number, indices) for every step; equal on all ranks for equal seeds."""
    generator = torch.Generator().manual_seed(seed)
    size, count = min(schedule.batch_size, len(split)), max(1, len(split) // schedule.batch_size)
    fixed = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    step = 0
    while True:
        if schedule.fixed_batches:
            order = [(int(b), fixed[b * size : (b + 1) * size]) for b in torch.randperm(count, generator=generator)]
        else:
            shuffled = torch.randperm(len(split), generator=generator)
            order = [(b, shuffled[b * size : (b + 1) * size]) for b in range(count)]
        for number, index in order:
            if step == schedule.num_steps:
                return
            yield number, index
            step += 1


Observe = Callable[[int, float], None]
"""Told the 0-based step and its training loss."""


class Trainee(Protocol):
    """A model, or this rank's part of one, with its optimiser and its task."""

    task: Task
    schedule: Schedule

    def step(self, number: int, index: Tensor) -> None:
        """Train on one batch: examples ``index`` [batch] int64 of the training split, batch ``number`` of the epoch.

        Raises NonFiniteInput if a tensor that ranks send each other is not finite.
        """
        ...

    def loss(self) -> float:
        """Return the last step's loss, equal on all ranks; a collective call where only some of them know it."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Return the scores over the test split; on ranks without logits, an empty dictionary."""
        ...


def train(trainee: Trainee, seed: int, observe: Observe | None = None) -> float:
    """Train over the whole schedule; return the last loss.

    Raises TrainingDiverged as soon as the loss, or what ranks send each other, is no longer finite.
    """
    value = math.nan
    for step, (number, index) in enumerate(batches(trainee.task.train, trainee.schedule, seed)):
        try:
            trainee.step(number, index)
        except NonFiniteInput as error:
            raise TrainingDiverged(step, str(error)) from error
        value = trainee.loss()
        if not math.isfinite(value):
            raise TrainingDiverged(step, f"the loss is {value}")
        if observe is not None:
            observe(step, value)
    return value


class ModelTrainee:
    """A whole model in this process, or one tensor-parallel rank of it. Owner of the optimiser and the number of steps."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        schedule: Schedule,
        compression: Compression | None = None,
        stopwatch: Stopwatch | None = None,
        dtype: str = "fp32",
    ) -> None:
        self.precision = precision(dtype)
        self.module, self.task, self.schedule, self.compression = model, task, schedule, compression
        self.stopwatch = stopwatch or Stopwatch(is_running=False)
        self.optimizer = schedule.optimizer(self.module)
        self.number = 0
        self.last_loss = math.nan

    def step(self, number: int, index: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.number)
        self.module.train()
        inputs, labels = self.task.train.batch(index)
        if self.compression is not None and self.schedule.fixed_batches:
            self.compression.name_batch(number)
        self.compute_gradients(inputs, labels, number)
        with self.stopwatch.part("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.number += 1
        if self.compression is not None:
            self.compression.advance()

    def compute_gradients(self, inputs: dict[str, Tensor], labels: Tensor, number: int) -> None:
        """Run forward and backward over one batch, and remember its loss."""
        with self.stopwatch.part("forward"):
            loss = loss_of(self.task, self.precision.logits(self.module, inputs), labels)
        with self.stopwatch.part("backward"):
            loss.backward()
        self.last_loss = float(loss.detach())

    def loss(self) -> float:
        return self.last_loss

    def evaluate(self) -> dict[str, float]:
        return evaluate(self.module, self.task, compression=self.compression, dtype=self.precision.name)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    batch_size: int = 256,
    compression: Compression | None = None,
    dtype: str = "fp32",
) -> dict[str, float]:
    """Return the task's scores over its test split, in batches of ``batch_size`` examples.

    ``compression`` is told the name of every batch, for compressors that remember samples.
    """
    model.eval()
    logits = []
    for start in range(0, len(task.test), batch_size):
        index = torch.arange(start, min(start + batch_size, len(task.test)))
        inputs, _ = task.test.batch(index)
        if compression is not None:
            compression.name_batch(("test", start))
        logits.append(precision(dtype).logits(model, inputs))
    return scores(task, torch.cat(logits), task.test.labels)
