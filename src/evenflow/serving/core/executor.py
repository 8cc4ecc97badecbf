"""The seam between decisions and tensors: who turns a StepPlan into a StepResult."""

from __future__ import annotations

from typing import Protocol

from evenflow.serving.core.plan import StepPlan, StepResult


class Executor(Protocol):
    """Computes plans: in this process, on several ranks, or on a virtual clock that computes nothing."""

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step. Raises only if the engine cannot go on."""
        ...

    def close(self) -> None:
        """Give back what it holds. Idempotent."""
        ...


__all__ = ["Executor"]
