"""How fair a run was: the VTC paper's measures exactly as published, and corrected ones.

Two measures over the same run, never mixed:

* ``paper``: a request's whole cost, input included, is spread evenly from its first to its last token; demand leaves out
  rejected (or shed) requests (VTC's published tables and figures).
* ``token``: cost counts when a token is computed; demand includes them; differences between clients are
  weighed against their entitlement.

It reads logs and knows no scheduler, no policy and no clock. Service is in the cost function's unit, rates per second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evenflow.fairness.measures.runlog import RunLog, backlog_by_client, intersect

MEASURES = ("paper", "token")


@dataclass(frozen=True, slots=True)
class Windows:
    """Where differences are taken (the published scripts: T = 600, 20 ticks, warm-up 30 s, window 60 s: 19 windows)."""

    horizon_s: float
    num_ticks: int = 20
    warmup_s: float = 30.0
    window_s: float = 60.0

    @property
    def starts_s(self) -> np.ndarray:
        """Left ends: (T - warmup) / num_ticks x k for k = 1 .. num_ticks - 1."""
        return (self.horizon_s - self.warmup_s) / self.num_ticks * np.arange(1, self.num_ticks)


@dataclass(frozen=True, slots=True)
class ClientFairness:
    """One client's account over the whole run."""

    service: float
    demand: float
    share: float
    ttft_mean_s: float | None


@dataclass(frozen=True, slots=True)
class Fairness:
    """One run seen through one measure."""

    measure: str
    max_diff: float
    avg_diff: float
    diff_var: float
    throughput_tok_s: float
    total_s: float
    served: int
    rejected: int
    jain: float
    accumulated_diff_max: float
    bound_2u: float | None
    ttft_mean_s: float | None
    ttft_p50_s: float | None
    ttft_p90_s: float | None
    ttft_p99_s: float | None
    per_client: dict[str, ClientFairness]


class Accounts:
    """Cumulative service and demand of every client of a run under one measure, ready to be asked for any time."""

    def __init__(self, log: RunLog, measure: str) -> None:
        if measure not in MEASURES:
            raise ValueError(f"unknown measure {measure!r}; known: {', '.join(MEASURES)}")
        self.measure = measure
        self.log = log
        self.clients = sorted({r.client_id for r in log.requests}, key=_natural)
        self._service = _spread_service(log) if measure == "paper" else _token_service(log)
        self._demand = _cumulative_demand(log, include_rejected=measure == "token")

    def service(self, client_id: str, times_s: np.ndarray | Sequence[float]) -> np.ndarray:
        """Service of the client from the start up to each time."""
        times = np.asarray(times_s, float)
        if client_id not in self._service:
            return np.zeros(len(times))
        knots, values = self._service[client_id]
        if self.measure == "paper":  # piecewise linear
            return np.interp(times, knots, values, left=0.0)
        return values[np.searchsorted(knots, times, side="right")]

    def demand(self, client_id: str, times_s: np.ndarray | Sequence[float]) -> np.ndarray:
        """Cost of what the client asked for up to each time."""
        if client_id not in self._demand:
            return np.zeros(len(times_s))
        knots, values = self._demand[client_id]
        return values[np.searchsorted(knots, np.asarray(times_s, float), side="right")]

    def service_rates(self, windows: Windows) -> np.ndarray:
        """[clients, windows] service per second."""
        starts = windows.starts_s
        rows = [self.service(c, starts + windows.window_s) - self.service(c, starts) for c in self.clients]
        return np.array(rows).reshape(len(self.clients), len(starts)) / windows.window_s

    def demand_rates(self, windows: Windows) -> np.ndarray:
        """[clients, windows] demand per second."""
        starts = windows.starts_s
        rows = [self.demand(c, starts + windows.window_s) - self.demand(c, starts) for c in self.clients]
        return np.array(rows).reshape(len(self.clients), len(starts)) / windows.window_s


def service_differences(accounts: Accounts, windows: Windows) -> np.ndarray:
    """[windows] sum over clients of min(max_j S_j - S_i, |D_i - S_i|): service that the less served wanted and did not get.

    With weights (``token`` only) S and D are divided by the client's weight for the comparison and multiplied back.
    """
    service, demand = accounts.service_rates(windows), accounts.demand_rates(windows)
    if not len(service):
        return np.zeros(len(windows.starts_s))
    weights = np.ones(len(accounts.clients))
    if accounts.measure == "token":
        weights = np.array([accounts.log.weight_by_client.get(c, 1.0) for c in accounts.clients])
    best = (service / weights[:, None]).max(axis=0)
    behind = best * weights[:, None] - service
    return np.minimum(behind, np.abs(demand - service)).sum(axis=0)


def accumulated_difference(accounts: Accounts, windows: Windows) -> float:
    """``paper``: the largest spread, over the ticks x, of the clients' service in [warmup, warmup + x].

    ``token``: the largest difference of service per weight between two clients over any interval in which both were
    backlogged; this is what the theorem bounds by 2U. Of many clients, the fifty with the largest demand are compared.
    """
    if accounts.measure == "token":
        return _backlogged_difference(accounts)
    ends = windows.warmup_s + (windows.horizon_s - windows.warmup_s) / windows.num_ticks * np.arange(1, windows.num_ticks + 1)
    gained = np.array([accounts.service(c, ends) - accounts.service(c, [windows.warmup_s]) for c in accounts.clients])
    return float((gained.max(axis=0) - gained.min(axis=0)).max()) if len(gained) else 0.0


def jain_index(values: Sequence[float] | np.ndarray) -> float:
    """(sum x)^2 / (n sum x^2): 1 when all are equal, 1/n when one has everything; 1 for nothing at all."""
    x = np.asarray(values, float)
    squares = float((x * x).sum())
    return 1.0 if squares == 0 else float(x.sum()) ** 2 / (len(x) * squares)


def entitlements(demand: Sequence[float], weights: Sequence[float], capacity: float) -> np.ndarray:
    """Weighted max-min fair division of ``capacity``: nobody gets more than its demand, the rest by weight (water-filling)."""
    wanted, weight = np.asarray(demand, float), np.asarray(weights, float)
    given = np.zeros(len(wanted))
    is_open = wanted > 0
    left = min(capacity, float(wanted.sum()))
    while left > 1e-12 and is_open.any():
        level = left / weight[is_open].sum()
        full = is_open & (wanted - given <= level * weight)
        if not full.any():
            given[is_open] += level * weight[is_open]
            break
        left -= float((wanted - given)[full].sum())
        given[full] = wanted[full]
        is_open &= ~full
    return given


def bound_2u(log: RunLog) -> float | None:
    """2 max(h(longest input, 0), h(0, M) - h(0, 0)) over the smallest weight; None if M is unknown (VTC paper, theorem 4.4)."""
    if not log.memory_tokens:
        return None
    longest = max((r.input_tokens for r in log.requests), default=0)
    smallest = min([1.0, *log.weight_by_client.values()])
    cost = log.cost
    return 2.0 * max(cost(longest, 0), cost(0, log.memory_tokens) - cost(0, 0)) / smallest


def shares(accounts: Accounts) -> dict[str, float]:
    """Part of the service that each client received while every client with demand was backlogged.

    If there is no such time: up to the last arrival.
    """
    log = accounts.log
    backlog = backlog_by_client(log)
    intervals = intersect(*(backlog.get(c, []) for c in accounts.clients))
    received = _service_within(accounts, intervals)
    if sum(received.values()) <= 0:
        received = _service_within(accounts, [(0.0, max((r.arrival_s for r in log.requests), default=0.0))])
    total = sum(received.values())
    return {c: received[c] / total if total > 0 else 0.0 for c in accounts.clients}


def measure_run(log: RunLog, measure: str, windows: Windows) -> Fairness:
    """Everything the report says of one run, through one measure."""
    accounts = Accounts(log, measure)
    differences = service_differences(accounts, windows)
    served = [r for r in log.requests if not r.is_refused]
    waits = [r.first_token_s - r.arrival_s for r in served if r.first_token_s is not None]
    waits_by_client: dict[str, list[float]] = {}
    for r in served:
        if r.first_token_s is not None:
            waits_by_client.setdefault(r.client_id, []).append(r.first_token_s - r.arrival_s)
    share = shares(accounts)
    end = [math.inf]
    per_client = {
        c: ClientFairness(
            service=float(accounts.service(c, end)[0]),
            demand=float(accounts.demand(c, end)[0]),
            share=share[c],
            ttft_mean_s=float(np.mean(waits_by_client[c])) if c in waits_by_client else None,
        )
        for c in accounts.clients
    }
    p50, p90, p99 = (float(p) for p in np.percentile(waits, [50, 90, 99])) if waits else (None, None, None)
    return Fairness(
        measure=measure,
        max_diff=float(differences.max(initial=0.0)),
        avg_diff=float(differences.mean()),
        diff_var=float(differences.var()),
        throughput_tok_s=sum(r.input_tokens + r.output_tokens for r in served) / log.total_s if log.total_s > 0 else 0.0,
        total_s=log.total_s,
        served=len(served),
        rejected=len(log.requests) - len(served),
        jain=_jain(accounts),
        accumulated_diff_max=accumulated_difference(accounts, windows),
        bound_2u=bound_2u(log),
        ttft_mean_s=float(np.mean(waits)) if waits else None,
        ttft_p50_s=p50,
        ttft_p90_s=p90,
        ttft_p99_s=p99,
        per_client=per_client,
    )


def response_times(log: RunLog, client_id: str, times_s: Sequence[float], half_window_s: float = 30.0) -> list[float]:
    """Mean time to first token of the client's requests whose first token falls within +-30 s; NaN where there is none."""
    firsts = [
        (r.first_token_s, r.first_token_s - r.arrival_s)
        for r in log.requests
        if r.client_id == client_id and r.first_token_s is not None
    ]
    firsts.sort()
    at = np.array([t for t, _ in firsts])
    waited = np.concatenate([[0.0], np.cumsum([w for _, w in firsts])])
    low = np.searchsorted(at, np.asarray(times_s) - half_window_s, side="left")
    high = np.searchsorted(at, np.asarray(times_s) + half_window_s, side="right")
    return [float((waited[h] - waited[k]) / (h - k)) if h > k else math.nan for k, h in zip(low, high, strict=True)]


def _natural(name: str) -> tuple[int, int | str]:
    """Sort key that puts client 2 before client 10."""
    return (0, int(name)) if name.isdigit() else (1, name)


def _spread_service(log: RunLog) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Piecewise linear cumulative service: knots and values at the knots."""
    slopes: dict[str, list[tuple[float, float]]] = {}
    for r in log.requests:
        if r.is_refused or r.first_token_s is None or r.finished_s is None:
            continue
        # a single token has no duration: it counts within the microsecond after it
        end = max(r.finished_s, r.first_token_s + 1e-6)
        slope = log.cost(r.input_tokens, r.output_tokens) / (end - r.first_token_s)
        slopes.setdefault(r.client_id, []).extend([(r.first_token_s, slope), (end, -slope)])
    curves = {}
    for client, changes in slopes.items():
        changes.sort()
        knots = np.array([t for t, _ in changes])
        rates = np.cumsum([s for _, s in changes])
        values = np.concatenate([[0.0], np.cumsum(rates[:-1] * np.diff(knots))])
        curves[client] = (knots, np.maximum.accumulate(values))
    return curves


def _token_service(log: RunLog) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Step function: values[i] holds from knots[i - 1] to before knots[i]."""
    costs = log.service.costs
    return {c: (np.asarray(times), np.concatenate([[0.0], np.cumsum(costs[c])])) for c, times in log.service.times_s.items()}


def _cumulative_demand(log: RunLog, *, include_rejected: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Step function of the cost that has been asked for."""
    asked: dict[str, list[tuple[float, float]]] = {}
    for r in log.requests:
        if include_rejected or not r.is_refused:
            asked.setdefault(r.client_id, []).append((r.arrival_s, log.cost(r.input_tokens, r.wanted_output_tokens)))
    curves = {}
    for client, pairs in asked.items():
        pairs.sort()
        curves[client] = (np.array([t for t, _ in pairs]), np.concatenate([[0.0], np.cumsum([c for _, c in pairs])]))
    return curves


def _service_within(accounts: Accounts, intervals: Sequence[tuple[float, float]]) -> dict[str, float]:
    starts, ends = [a for a, _ in intervals], [b for _, b in intervals]
    return {c: float((accounts.service(c, ends) - accounts.service(c, starts)).sum()) for c in accounts.clients}


def _jain(accounts: Accounts) -> float:
    """``paper``: of the service per weight up to the last arrival. ``token``: of the service over each client's entitlement."""
    last = [max((r.arrival_s for r in accounts.log.requests), default=0.0)]
    weights = [accounts.log.weight_by_client.get(c, 1.0) for c in accounts.clients]
    service = np.array([float(accounts.service(c, last)[0]) for c in accounts.clients])
    if accounts.measure == "paper":
        return jain_index(service / np.asarray(weights))
    demand = [float(accounts.demand(c, last)[0]) for c in accounts.clients]
    entitled = entitlements(demand, weights, float(service.sum()))
    return jain_index(np.divide(service, entitled, out=np.ones_like(service), where=entitled > 0))


def _backlogged_difference(accounts: Accounts, most: int = 50) -> float:
    """Largest |W_f / w_f - W_g / w_g| over intervals in which f and g were both backlogged, all pairs."""
    log = accounts.log
    by_demand = sorted(accounts.clients, key=lambda c: -float(accounts.demand(c, [math.inf])[0]))[:most]
    backlog = backlog_by_client(log)
    widest = 0.0
    for i, first in enumerate(by_demand):
        for second in by_demand[i + 1 :]:
            both = intersect(backlog.get(first, []), backlog.get(second, []))
            if not both:
                continue
            times = np.union1d([0.0, *log.service.times_s.get(first, [])], log.service.times_s.get(second, []))
            gap = accounts.service(first, times) / log.weight_by_client.get(first, 1.0)
            gap = gap - accounts.service(second, times) / log.weight_by_client.get(second, 1.0)
            for start, end in both:
                within = gap[np.searchsorted(times, start, side="right") - 1 : np.searchsorted(times, end, side="right")]
                widest = max(widest, float(within.max() - within.min()))
    return widest
