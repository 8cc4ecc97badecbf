"""One step of a server: plan, run, decide who has ended, commit.

The engine, the simulator and the LoRA benchmark all compute their steps here; they differ in the executor, in the
clock, and in the rule by which a request has ended. No torch, no text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evenflow.serving.core.executor import Executor
from evenflow.serving.core.plan import StepPlan, StepResult
from evenflow.serving.core.request import FinishReason, RequestId
from evenflow.serving.scheduler.scheduler import Scheduler
from evenflow.serving.scheduler.snapshot import EndedRequest

StopRule = Callable[[StepPlan, StepResult], Mapping[RequestId, FinishReason]]
"""Says which requests end with the tokens of a step, and why; called once, before the step is committed."""


@dataclass(frozen=True, slots=True)
class ComputedStep:
    """A step that has been committed. Times are those of the clock that ``compute_step`` was given, in seconds."""

    plan: StepPlan
    result: StepResult
    finished: Mapping[RequestId, FinishReason]
    """Requests that the stop rule ended."""
    planned_s: float
    """When the plan was made and the executor began."""
    ran_s: float
    """When the executor had the result; the time of the commit, too."""


def compute_step(
    scheduler: Scheduler, executor: Executor, clock: Callable[[], float], stop_rule: StopRule
) -> tuple[ComputedStep | None, list[EndedRequest]]:
    """Plan one step, compute and commit it.

    Returns the step, or None if there is nothing to compute now, and the requests that the scheduler itself had to
    end while it planned or committed. Raises what the executor raises; the engine cannot go on then.
    """
    plan = scheduler.plan(clock())
    if plan is None:
        return None, scheduler.take_ended()
    planned_s = clock()
    result = executor.run(plan)
    ran_s = clock()
    finished = stop_rule(plan, result)
    scheduler.commit(result, finished, ran_s)
    return ComputedStep(plan, result, finished, planned_s, ran_s), scheduler.take_ended()


__all__ = ["ComputedStep", "StopRule", "compute_step"]
