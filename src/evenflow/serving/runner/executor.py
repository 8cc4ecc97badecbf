"""The executor of one process: plans run on its worker, on the thread that asks."""

from __future__ import annotations

from evenflow.serving.core.plan import StepPlan, StepResult
from evenflow.serving.runner.worker import Worker


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


__all__ = ["LocalExecutor"]
