"""One pipeline stage in training: its module, its optimiser, and the schedule that drives it through micro-batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evenflow.base.errors import ConfigError
from evenflow.mcbench.runs.build import MeshGroups, build_model
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.runs.trainer import ModelTrainee, Schedule
from evenflow.mcbench.split.boundary import width_of
from evenflow.mcbench.split.coders import Coders
from evenflow.mcbench.split.parity import first_tensor
from evenflow.mcbench.split.pipeline import (
    CompressedPipelineStage,
    StageModule,
    make_schedule,
    reduce_tied_gradients,
    tied_parameters,
)
from evenflow.mcbench.split.wiring import Compression
from evenflow.mcbench.tasks.scores import loss_of, scores
from evenflow.mcbench.tasks.task import Task


class PipelineTrainee(ModelTrainee):
    """One stage of a pipelined model. Only the last stage has logits and losses; ``loss`` tells them to all stages."""

    module: StageModule
    compression: Compression

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        schedule: Schedule,
        groups: MeshGroups,
        model: Any,
        compression: Compression,
        stopwatch: Any,
    ) -> None:
        self.config, self.groups = config, groups
        self.tied = tied_parameters(model)
        coders = Coders(compression.rules, groups.pp.rank, config.pp, width_of(model), next(model.parameters()))
        stage = StageModule(model, groups.pp.rank, config.pp, compression, coders)
        super().__init__(stage, task, schedule, compression, stopwatch, config.dtype)
        self.stages: dict[tuple[int, bool], tuple[CompressedPipelineStage, Any]] = {}

    def compute_gradients(self, inputs: dict[str, Tensor], labels: Tensor, number: int) -> None:
        self.run_batch(inputs, labels, number, is_training=True)

    def loss(self) -> float:
        own = self.last_loss if self.module.is_last else 0.0
        return float(self.groups.pp.all_reduce(torch.tensor(own, dtype=torch.float64)))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        self.module.eval()
        size = self.schedule.batch_size
        logits = []
        count = len(self.task.test)
        for start in range(0, count, size):
            # The last batch is filled up from the front: pipelines want equal shapes.
            index = torch.arange(start, start + size) % count
            inputs, labels = self.task.test.batch(index)
            output = self.run_batch(inputs, labels, -1 - start, is_training=False)
            if output is not None:
                logits.append(output)
        if not logits:
            return {}
        return scores(self.task, torch.cat(logits)[:count], self.task.test.labels)

    def run_batch(self, inputs: dict[str, Tensor], labels: Tensor, number: int, is_training: bool) -> Tensor | None:
        """Send one batch through all stages, forward and, in training, backward; return the logits on the last stage."""
        self.compression.set_switch(is_training)
        inputs = self.precision.inputs(inputs)
        stage, schedule = self._stage(inputs, labels)
        stage.begin(self.number, number)
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
            reduce_tied_gradients(self.module, self.tied, self.groups.pp)
            if self.module.coders is not None:
                self.module.coders.reduce_gradients(self.groups.pp)
        return output.detach().float() if stage.is_last else None

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
                self.groups.pp.rank,
                self.config.pp,
                self.groups.mesh["pp"].get_group(),
                hidden,
                output,
                self.compression,
                self.config.microbatches,
            )
            schedule = make_schedule(self.config.schedule, stage, lambda y, target: loss_of(self.task, y.float(), target))
            self.stages[key] = (stage, schedule)
        return self.stages[key]

    def _shapes(self, part: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return examples of what this stage takes and gives, for one micro-batch."""
        single = build_model(self.config, self.task, 0)
        with torch.no_grad():
            logits = first_tensor(single(**part))
            states = single(**part, output_hidden_states=True).hidden_states[0]
        module = self.module
        module.hidden_shape = states.shape
        between = [torch.empty_like(states).requires_grad_() for _ in range(2)]
        if module.active_coders is not None:
            between = [module.active_coders.message_like(states) for _ in range(2)]
        given = next(iter(part.values())) if module.is_first else between[0]
        return given, (logits.requires_grad_() if module.is_last else between[1])
