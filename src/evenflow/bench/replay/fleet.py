"""Several simulated engines behind one router, on one virtual time: the scheduler, policies and routers that are shipped.

Every engine has a clock of its own, which jumps from step to step; the engine whose clock is furthest behind goes next, so
what happens is in order of time. What a router hears of an engine is as old as on a real one: requests that ended with a
step are heard of at its end, resident adapters every ``REPORT_S``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from evenflow.bench.replay.profiles import ServerSettings
from evenflow.fairness import ClientQueues, CostFunction, Policy, WeightedTokens
from evenflow.routing.router import RoutedRequest, Router
from evenflow.routing.table import RoutingTable
from evenflow.serving.core.plan import StepPlan, StepResult
from evenflow.serving.core.request import FinishReason, Request, RequestId
from evenflow.serving.engine.simulated import SimulatedExecutor, StepTime, VirtualClock
from evenflow.serving.engine.step import compute_step
from evenflow.serving.scheduler.scheduler import Scheduler

REPORT_S = 0.25
"""How often an engine tells which adapters are resident; as often as a real one sends its statistics."""


@dataclass(slots=True)
class FleetRun:
    """What happened to every request, and what the engines did."""

    requests: list[Request] = field(default_factory=list)
    num_rejected: int = 0
    num_adapter_requests: int = 0
    num_adapter_hits: int = 0
    """Requests whose adapter was in the arena of the engine that they were sent to, when they arrived there."""
    num_adapter_loads: int = 0
    total_s: float = 0.0
    requests_by_replica: list[int] = field(default_factory=list)


MakePolicy = Callable[[int, ClientQueues, Callable[[], float]], Policy]
"""Of the number of an engine, its queues and its clock."""


@dataclass(slots=True)
class _Replica:
    index: int
    scheduler: Scheduler
    clock: VirtualClock
    executor: SimulatedExecutor
    is_idle: bool = True
    num_tokens: dict[RequestId, int] = field(default_factory=dict)
    ended: list[RequestId] = field(default_factory=list)
    reported_s: float = 0.0

    def step(self) -> bool:
        """Compute one step; False if there is nothing to do."""

        def rule(plan: StepPlan, result: StepResult) -> dict[RequestId, FinishReason]:
            finished = {}
            for request_id in result.tokens:
                request = self.scheduler.get(request_id)
                assert request is not None
                self.num_tokens[request_id] = count = self.num_tokens.get(request_id, 0) + 1
                length = request.known_output_tokens
                if count >= (request.max_output_tokens if length is None else length):
                    finished[request_id] = FinishReason.LENGTH
                    self.ended.append(request_id)
                    del self.num_tokens[request_id]
            return finished

        step, ended = compute_step(self.scheduler, self.executor, self.clock, rule)
        self.ended += [each.request.request_id for each in ended]
        return step is not None


def simulate_fleet(
    requests: Iterator[Request],
    num_replicas: int,
    router: Router,
    make_policy: MakePolicy,
    server: ServerSettings,
    step_time: StepTime,
    *,
    max_model_len: int,
    cost: CostFunction | None = None,
    expected_output_tokens: int = 64,
    until_s: float | None = None,
) -> FleetRun:
    """Serve ``requests`` (arrival times not falling) with ``num_replicas`` engines; to the end, or until ``until_s``.

    The router takes every output for ``expected_output_tokens`` long: it does not know better on a real one either.
    """
    price = cost or WeightedTokens()
    table = RoutingTable(router)
    replicas = [_replica(i, make_policy, server, step_time, max_model_len) for i in range(num_replicas)]
    for replica in replicas:
        table.joined(str(replica.index))
    run = FleetRun(requests_by_replica=[0] * num_replicas)
    routed: dict[RequestId, RoutedRequest] = {}
    busy: list[tuple[float, int]] = []
    arrival = next(requests, None)
    while arrival is not None or busy:
        if busy and (arrival is None or busy[0][0] < arrival.arrival_s):
            now_s, index = heapq.heappop(busy)
            if until_s is not None and now_s >= until_s:
                break
            replica = replicas[index]
            _report(replica, table, routed, now_s)
            if replica.step():
                run.total_s = max(run.total_s, replica.clock.now_s)
                heapq.heappush(busy, (replica.clock.now_s, index))
            else:
                _report(replica, table, routed, now_s)
                replica.is_idle = True
            continue
        assert arrival is not None, "nothing is left to happen"
        if until_s is not None and arrival.arrival_s >= until_s:
            break
        asked = RoutedRequest(arrival.adapter, max(price(arrival.num_prompt_tokens, expected_output_tokens), 1.0))
        name = table.route(asked)
        assert name is not None, "a fleet without engines"
        replica = replicas[int(name)]
        run.requests.append(arrival)
        run.requests_by_replica[replica.index] += 1
        if arrival.adapter is not None:
            run.num_adapter_requests += 1
            run.num_adapter_hits += replica.scheduler.residency.is_resident(arrival.adapter)
        if replica.scheduler.add(arrival, arrival.arrival_s).is_accepted:
            routed[arrival.request_id] = asked
        else:
            run.num_rejected += 1
            table.ended(name, asked)
        if replica.is_idle:
            replica.is_idle = False
            replica.clock.now_s = max(replica.clock.now_s, arrival.arrival_s)
            heapq.heappush(busy, (replica.clock.now_s, replica.index))
        arrival = next(requests, None)
    run.num_adapter_loads = sum(replica.scheduler.snapshot().num_adapter_loads for replica in replicas)
    for replica in replicas:
        replica.scheduler.policy.close()
    return run


def _replica(index: int, make_policy: MakePolicy, server: ServerSettings, step_time: StepTime, max_model_len: int) -> _Replica:
    queues, clock = ClientQueues(), VirtualClock()
    scheduler = server.scheduler(make_policy(index, queues, clock), queues, max_model_len=max_model_len)
    return _Replica(index, scheduler, clock, SimulatedExecutor(step_time, clock))


def _report(replica: _Replica, table: RoutingTable, routed: dict[RequestId, RoutedRequest], now_s: float) -> None:
    """The router hears what has ended, and now and then which adapters are resident."""
    for request_id in replica.ended:
        table.ended(str(replica.index), routed.pop(request_id))
    replica.ended.clear()
    if now_s - replica.reported_s >= REPORT_S:
        replica.reported_s = now_s
        table.resident(str(replica.index), replica.scheduler.residency.residents())
