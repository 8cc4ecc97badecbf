"""What a run leaves behind for the measures: its requests, and the service of every client over time.

Written by whoever drives a scheduler (the simulator, a load generator); read by measures.py. No clock, no policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evenflow.fairness.books.cost import CostFunction, WeightedTokens

Interval = tuple[float, float]


@dataclass(slots=True)
class RequestRecord:
    """One request as the run saw it. Times in seconds; None: it did not come so far."""

    client_id: str
    arrival_s: float
    input_tokens: int
    output_tokens: int
    """Produced."""
    wanted_output_tokens: int
    """What it would have produced, had it been served to its end: its part in the demand."""
    is_rejected: bool = False
    """Turned away on arrival."""
    is_shed: bool = False
    """Accepted, and given up while it waited: it would have come too late."""
    admitted_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    waits_again: list[Interval] = field(default_factory=list)
    """When it waited after it had been admitted, because it was preempted."""

    @property
    def is_refused(self) -> bool:
        """Rejected or shed: it received nothing."""
        return self.is_rejected or self.is_shed


@dataclass(slots=True)
class ServiceLog:
    """Service by client as it was computed: parallel lists of (time, cost), times not decreasing."""

    times_s: dict[str, list[float]] = field(default_factory=dict)
    costs: dict[str, list[float]] = field(default_factory=dict)

    def add(self, client_id: str, time_s: float, cost: float) -> None:
        """``cost`` was computed for the client in the step that ended at ``time_s``."""
        times = self.times_s.get(client_id)
        if times is None:
            self.times_s[client_id] = [time_s]
            self.costs[client_id] = [cost]
        elif times[-1] == time_s:
            self.costs[client_id][-1] += cost
        else:
            times.append(time_s)
            self.costs[client_id].append(cost)


@dataclass(slots=True)
class RunLog:
    """Everything the measures read of one run."""

    requests: Sequence[RequestRecord]
    service: ServiceLog
    total_s: float
    """From the start to the last token, the drain included."""
    weight_by_client: Mapping[str, float] = field(default_factory=dict)
    cost: CostFunction = field(default_factory=WeightedTokens)
    memory_tokens: int = 0
    """M of the bound: tokens that the pool holds; 0: unknown."""


def backlog_by_client(log: RunLog) -> dict[str, list[Interval]]:
    """Disjoint intervals, in order, in which each client has a request waiting.

    It has arrived and is not yet admitted or given up, or it was preempted and has not been taken up again.
    """
    waits: dict[str, list[Interval]] = {}
    for record in log.requests:
        end = next((time for time in (record.admitted_s, record.finished_s) if time is not None), log.total_s)
        if not record.is_rejected and end > record.arrival_s:
            waits.setdefault(record.client_id, []).append((record.arrival_s, end))
        waits.setdefault(record.client_id, []).extend(record.waits_again)
    return {client: _merge(intervals) for client, intervals in waits.items() if intervals}


def intersect(*sets: Sequence[Interval]) -> list[Interval]:
    """Intervals of positive length that lie in every one of the sets (each disjoint and in order)."""
    common = list(sets[0]) if sets else []
    for other in sets[1:]:
        found: list[Interval] = []
        i = j = 0
        while i < len(common) and j < len(other):
            start, end = max(common[i][0], other[j][0]), min(common[i][1], other[j][1])
            if end > start:
                found.append((start, end))
            if common[i][1] < other[j][1]:
                i += 1
            else:
                j += 1
        common = found
    return common


def _merge(intervals: list[Interval]) -> list[Interval]:
    """Overlapping or touching intervals made one: a queue refilled the moment it empties was never empty."""
    intervals.sort()
    merged: list[Interval] = []
    for start, end in intervals:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
