"""Routers against each other on one trace: hits, times to first token, throughput and shares of several engines."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.base.progress import Tell, tell_nobody
from evenflow.base.version import __version__
from evenflow.bench.replay.fleet import FleetRun, MakePolicy, simulate_fleet
from evenflow.bench.replay.profiles import ServerSettings
from evenflow.bench.replay.trace import Trace
from evenflow.bench.replay.trace_requests import requests_of
from evenflow.fairness import ClientQueues, CostFunction, Policy, create_policy
from evenflow.fairness.books.counter_book import CounterBook
from evenflow.fairness.books.exchange import Answer, Batch
from evenflow.fairness.policies.shared import SharedVTC
from evenflow.report.page import write_whole
from evenflow.routing.registry import create_router
from evenflow.serving.engine.simulated import StepTime

SHARED = "vtc-shared"
SYNC_S = 0.1


@dataclass(frozen=True, slots=True)
class FleetResult:
    """One router with one policy and number of engines."""

    router: str
    policy: str
    num_replicas: int
    num_requests: int
    num_rejected: int
    hit_rate: float | None
    """Of requests with an adapter: those that found it in the arena of their engine; None: there were none."""
    num_adapter_loads: int
    ttft_p50_s: float
    ttft_p99_s: float
    tokens_per_s: float
    """Output tokens, from 0 to the last step."""
    most_over_mean: float
    """Requests that the busiest engine was sent, over the mean of all."""


class BookStore:
    """Shared counters in memory, as one simulated engine reaches them; ``clock`` is the engine's."""

    def __init__(self, book: CounterBook, server: str, clock: Callable[[], float]) -> None:
        self._book, self._server, self._clock = book, server, clock
        self.tells_changes = True
        self.num_failures = 0

    def exchange(self, batch: Batch) -> Answer | None:
        """Always answered, at once."""
        return self._book.exchange(self._server, batch, self._clock())

    def close(self) -> None:
        """Nothing to give back."""


def shared_policies(
    weights: Mapping[str, float] | None = None, cost: CostFunction | None = None, sync_s: float = SYNC_S
) -> MakePolicy:
    """``vtc-shared`` on one book for all engines that are made with it."""
    book = CounterBook()

    def make(index: int, queues: ClientQueues, clock: Callable[[], float]) -> Policy:
        store = BookStore(book, str(index), clock)
        return SharedVTC(queues, weights, cost, store=store, sync_s=sync_s, in_background=False)

    return make


def local_policies(spec: str, weights: Mapping[str, float] | None, cost: CostFunction | None, seed: int) -> MakePolicy:
    """The policy of that name, once for every engine."""
    return lambda index, queues, clock: create_policy(
        spec, queues=queues, weights=weights, cost=cost, seed=seed + index, is_simulation=True
    )


def compare_routers(
    trace: Trace,
    routers: Sequence[str],
    policies: Sequence[str],
    replica_counts: Sequence[int],
    server: ServerSettings,
    step_time: StepTime,
    *,
    weight_by_client: Mapping[str, float] | None = None,
    cost: CostFunction | None = None,
    seed: int = 0,
    tell: Tell = tell_nobody,
) -> list[FleetResult]:
    """Every router with every policy and number of engines. Raises ConfigError or RegistryError for what cannot run."""
    weights = {**trace.weight_by_client, **(weight_by_client or {})}
    longest = int((trace.input_len + trace.output_len).max()) if len(trace) else 1
    if longest >= server.pool_tokens:
        raise ConfigError(f"the longest request of {trace.name} has {longest} tokens; the pool holds {server.pool_tokens}")
    max_output = max(1024, 2 * int(trace.output_len.max())) if len(trace) else 1
    found: list[FleetResult] = []
    for count in replica_counts:
        for policy in policies:
            for name in routers:
                tell(f"{name}, {policy}, {count} engines", len(found), len(replica_counts) * len(policies) * len(routers))
                make = shared_policies(weights, cost) if policy == SHARED else local_policies(policy, weights, cost, seed)
                run = simulate_fleet(
                    requests_of(trace, max_output, server.serves_adapters),
                    count,
                    create_router(name, seed=seed),
                    make,
                    server,
                    step_time,
                    max_model_len=longest + max_output,
                    cost=cost,
                )
                found.append(_result(run, name, policy, count))
    return found


def service_by_weight(
    run: FleetRun, weights: Mapping[str, float], cost: CostFunction, since_s: float, until_s: float
) -> dict[float, float]:
    """Service of all clients of a weight that ended in [since_s, until_s), over their number and weight."""
    total: dict[float, float] = defaultdict(float)
    clients: dict[float, set[str]] = defaultdict(set)
    for request in run.requests:
        weight = weights.get(request.client_id, 1.0)
        clients[weight].add(request.client_id)
        if request.finished_s is not None and since_s <= request.finished_s < until_s:
            total[weight] += cost(request.num_prompt_tokens, request.num_output_tokens)
    return {weight: total[weight] / weight / len(clients[weight]) for weight in sorted(clients)}


def write_fleet_json(path: str | os.PathLike[str], results: Sequence[FleetResult], what: Mapping[str, Any]) -> None:
    """Write the results and what was replayed. Raises ConfigError with the path and the reason."""
    document = {"evenflow": __version__, **what, "runs": [asdict(result) for result in results]}
    write_whole(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def fleet_table(results: Sequence[FleetResult]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    header = ["engines", "policy", "router", "hits", "loads", "first token p50", "p99", "tokens/s", "busiest / mean"]
    rows = [
        [
            str(result.num_replicas),
            result.policy,
            result.router,
            "-" if result.hit_rate is None else f"{result.hit_rate:.1%}",
            f"{result.num_adapter_loads:,}",
            f"{result.ttft_p50_s:.3f} s",
            f"{result.ttft_p99_s:.3f} s",
            f"{result.tokens_per_s:,.0f}",
            f"{result.most_over_mean:.2f}",
        ]
        for result in results
    ]
    return header, rows


def _result(run: FleetRun, router: str, policy: str, count: int) -> FleetResult:
    waits = sorted(r.first_token_s - r.arrival_s for r in run.requests if r.first_token_s is not None)
    tokens = sum(request.num_output_tokens for request in run.requests)
    mean = max(len(run.requests) / count, 1e-9)
    return FleetResult(
        router=router,
        policy=policy,
        num_replicas=count,
        num_requests=len(run.requests),
        num_rejected=run.num_rejected,
        hit_rate=run.num_adapter_hits / run.num_adapter_requests if run.num_adapter_requests else None,
        num_adapter_loads=run.num_adapter_loads,
        ttft_p50_s=waits[len(waits) // 2] if waits else 0.0,
        ttft_p99_s=waits[min(len(waits) - 1, int(len(waits) * 0.99))] if waits else 0.0,
        tokens_per_s=tokens / run.total_s if run.total_s else 0.0,
        most_over_mean=max(run.requests_by_replica) / mean,
    )
