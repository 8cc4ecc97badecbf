"""The engine on a virtual clock: the real scheduler, arena and policies, and a model of how long a step takes.

So that fairness studies run what is shipped. No tensors, no text, no sleeping; token ids mean nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from evenflow.fairness.policy import Verdict
from evenflow.serving.core.plan import SampledToken, StepPlan, StepResult
from evenflow.serving.core.request import FinishReason, Request, RequestId
from evenflow.serving.engine.step import compute_step
from evenflow.serving.scheduler.scheduler import Scheduler

_TOKEN = SampledToken(token_id=0)


class StepTime(Protocol):
    """How long a server takes for a step, in seconds."""

    def __call__(self, plan: StepPlan) -> float:
        """Seconds for this plan; above 0."""
        ...


@dataclass(frozen=True, slots=True)
class LinearStepTime:
    """Seconds = base + per_token x token rows + per_context_token x tokens attended to. For tests and examples."""

    base_s: float = 0.02
    per_token_s: float = 0.0002
    per_context_token_s: float = 0.0

    def __call__(self, plan: StepPlan) -> float:
        rows = context = 0
        for sequence in plan.sequences:
            num_tokens = len(sequence.token_ids)
            rows += num_tokens
            context += sequence.start + num_tokens
        return self.base_s + self.per_token_s * rows + self.per_context_token_s * context


class VirtualClock:
    """A clock that moves only when it is told to; seconds from 0."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s


class SimulatedExecutor:
    """Answers a plan with a token for every sequence that wants one, and moves the clock by the time it would have taken."""

    def __init__(self, step_time: StepTime, clock: VirtualClock) -> None:
        self._step_time = step_time
        self._clock = clock

    def run(self, plan: StepPlan) -> StepResult:
        """Compute nothing; when it returns, the step's time is over."""
        tokens = {sequence.request_id: _TOKEN for sequence in plan.sequences if sequence.sample is not None}
        duration_s = self._step_time(plan)
        self._clock.now_s += duration_s
        return StepResult(plan.step, tokens, {}, duration_s)

    def close(self) -> None:
        """Nothing to give back."""


@dataclass(slots=True)
class Simulation:
    """What happened. Times of a request are in the request itself, token times here."""

    requests: list[Request] = field(default_factory=list)
    """All that arrived, in order of arrival, the rejected ones too."""
    verdicts: dict[RequestId, Verdict] = field(default_factory=dict)
    """Of the rejected ones."""
    token_times_s: dict[RequestId, list[float]] = field(default_factory=dict)
    """When each output token was there, per request that was accepted."""
    total_s: float = 0.0
    """From 0 to the end of the last step."""
    num_steps: int = 0


class StepObserver(Protocol):
    """Called after every step."""

    def __call__(self, plan: StepPlan, start_s: float, end_s: float) -> None:
        """``plan`` was computed from ``start_s`` to ``end_s``; it has been committed."""
        ...


def simulate(
    scheduler: Scheduler,
    requests: Iterable[Request],
    step_time: StepTime,
    *,
    aborts: Sequence[tuple[float, RequestId]] = (),
    until_s: float | None = None,
    observe: StepObserver | None = None,
    has_ended: Callable[[Request], bool] | None = None,
) -> Simulation:
    """Serve ``requests`` (arrival times not falling) on a virtual clock that starts at 0.

    A request ends after ``known_output_tokens`` (else max_output_tokens) tokens, unless ``has_ended`` says so
    earlier. ``aborts`` are (time, request) pairs, times not falling. ``until_s``: stop planning steps then;
    default: when everything has been served. The step in which something happens ends before it takes effect,
    as on a real server.

    Raises RuntimeError if the policy lets nothing start though nothing else is left to happen.
    """
    clock = VirtualClock()
    executor = SimulatedExecutor(step_time, clock)
    result = Simulation()

    def is_complete(plan: StepPlan, step: StepResult) -> dict[RequestId, FinishReason]:
        finished: dict[RequestId, FinishReason] = {}
        for request_id in step.tokens:
            times_s = result.token_times_s[request_id]
            times_s.append(clock.now_s)
            request = scheduler.get(request_id)
            assert request is not None
            length = request.known_output_tokens
            if len(times_s) >= (request.max_output_tokens if length is None else length) or (
                has_ended is not None and has_ended(request)
            ):
                finished[request_id] = FinishReason.LENGTH
        return finished

    arrivals = iter(requests)
    arrival = next(arrivals, None)
    pending_aborts = list(reversed(aborts))
    while until_s is None or clock.now_s < until_s:
        start_s = clock.now_s
        while arrival is not None and arrival.arrival_s <= start_s:
            result.requests.append(arrival)
            verdict = scheduler.add(arrival, start_s)
            if verdict.is_accepted:
                result.token_times_s[arrival.request_id] = []
            else:
                result.verdicts[arrival.request_id] = verdict
            following = next(arrivals, None)
            assert following is None or following.arrival_s >= arrival.arrival_s, "arrival times fall"
            arrival = following
        while pending_aborts and pending_aborts[-1][0] <= start_s:
            scheduler.abort(pending_aborts.pop()[1], start_s)
        step, _ = compute_step(scheduler, executor, clock, is_complete)
        if step is None:
            events = [arrival.arrival_s] if arrival is not None else []
            events += [time_s for time_s, _ in pending_aborts[-1:]]
            if not events:
                if scheduler.has_work:
                    raise RuntimeError(f"the policy starts none of {scheduler.num_waiting} waiting requests")
                break
            clock.now_s = min(events)
            continue
        result.num_steps += 1
        result.total_s = step.ran_s
        if observe is not None:
            observe(step.plan, step.planned_s, step.ran_s)
    return result
