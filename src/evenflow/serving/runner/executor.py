"""Where a plan runs: here, on several ranks, or on a virtual clock. One small protocol."""

from __future__ import annotations

from typing import Protocol

from evenflow.serving.core.plan import StepPlan, StepResult
from evenflow.serving.runner.worker import Worker


class Executor(Protocol):
    """Turns a StepPlan into a StepResult."""

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step. Raises only if the engine cannot go on."""
        ...

    def close(self) -> None:
        """Give back what it holds. Idempotent."""
        ...


class LocalExecutor:
    """One worker, in this process, on this thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def run(self, plan: StepPlan) -> StepResult:
        """See Executor."""
        return self._worker.run(plan)

    def close(self) -> None:
        """See Executor."""
        self._worker.close()
