"""One data-parallel rank in training: its part of every batch, and gradients averaged through a compressor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from evenflow.comm import TorchCollective
from evenflow.comm.collectives.links import Link
from evenflow.comm.collectives.stopwatch import Stopwatch
from evenflow.comm.data_parallel.ddp import compress_ddp
from evenflow.mcbench.runs.trainer import ModelTrainee, Schedule, evaluate
from evenflow.mcbench.split.wiring import Compression
from evenflow.mcbench.tasks.task import Task


class DataParallelTrainee(ModelTrainee):
    """A whole model on each rank. A batch is cut into equal parts, in rank order; all ranks evaluate the whole test split."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        schedule: Schedule,
        compression: Compression,
        stopwatch: Stopwatch,
        dtype: str,
        group: TorchCollective,
        link: Link,
    ) -> None:
        self.whole, self.group = model, group
        wrapped = DistributedDataParallel(model, process_group=group.group)
        rule = compression.rules.rule("dp.gradients")
        spec = rule.spec + (f"/{rule.transport}" if rule.transport else "")
        compress_ddp(wrapped, spec, link=link, ledger=compression.ledger, switch=compression.switch, stopwatch=stopwatch)
        super().__init__(wrapped, task, schedule, compression, stopwatch, dtype)

    def step(self, number: int, index: Tensor) -> None:
        W = self.group.world_size
        each = max(1, len(index) // W)
        super().step(number, index[: each * W].chunk(W)[self.group.rank])

    def loss(self) -> float:
        total = self.group.all_reduce(torch.tensor(self.last_loss, dtype=torch.float64))
        return float(total) / self.group.world_size

    def evaluate(self) -> dict[str, float]:
        return evaluate(self.whole, self.task, compression=self.compression, dtype=self.precision.name)
