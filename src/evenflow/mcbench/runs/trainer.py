"""Train and test one model on one task: the same loop for single, virtual and real ranks.

It sees a model, a task and a seed. What a forward call sends over the wire is the model's own affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from evenflow.base.errors import ConfigError
from evenflow.mcbench.names import GLUE_TASKS
from evenflow.mcbench.split.parity import first_tensor
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


NameBatch = Callable[[Hashable], None]
"""Told the name of the batch that comes: its number if batches are fixed, its place in the test split."""
Observe = Callable[[int, float], None]
"""Told the step and its training loss."""


def train(
    model: nn.Module,
    task: Task,
    schedule: Schedule,
    seed: int,
    after_step: Callable[[], None] = lambda: None,
    name_batch: NameBatch = lambda name: None,
    observe: Observe | None = None,
) -> float:
    """Train ``model`` in place with AdamW; return the last loss. Raises ConfigError if the loss is no longer finite."""
    value = math.nan
    optimizer = schedule.optimizer(model)
    model.train()
    for step, (number, index) in enumerate(batches(task.train, schedule, seed)):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        inputs, labels = task.train.batch(index)
        if schedule.fixed_batches:
            name_batch(number)
        loss = loss_of(task, first_tensor(model(**inputs)), labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ConfigError(f"loss is {value} at step {step}: the run diverged")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step()
        if observe is not None:
            observe(step, value)
    return value


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Task, batch_size: int = 256, name_batch: NameBatch = lambda name: None
) -> dict[str, float]:
    """Return the task's scores over its test split."""
    model.eval()
    logits = []
    for start in range(0, len(task.test), batch_size):
        index = torch.arange(start, min(start + batch_size, len(task.test)))
        inputs, _ = task.test.batch(index)
        name_batch(("test", start))
        logits.append(first_tensor(model(**inputs)))
    return scores(task, torch.cat(logits), task.test.labels)
