"""One trace through one policy on a virtual clock: the real scheduler, arena and policy, and what the measures need of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from evenflow.base.errors import ConfigError
from evenflow.bench.replay.clients_file import ClientShares
from evenflow.bench.replay.profiles import ServerSettings
from evenflow.bench.replay.trace import Trace
from evenflow.bench.replay.trace_requests import requests_of
from evenflow.fairness import ClientQueues, CostFunction, Policy, Schedulable, Service, WeightedTokens, create_policy
from evenflow.fairness.books.weights import tiered
from evenflow.fairness.measures.runlog import Interval, RequestRecord, RunLog, ServiceLog
from evenflow.fairness.policies.passthrough import PassThrough
from evenflow.serving.core.plan import NO_ADAPTER_SLOT, StepPlan
from evenflow.serving.core.request import FinishReason
from evenflow.serving.engine.simulated import StepTime, simulate
from evenflow.serving.scheduler import create_shedding


@dataclass(slots=True)
class Replay:
    """One run: what the measures read, and what the run cost."""

    policy: str
    seed: int
    log: RunLog
    num_steps: int
    num_preemptions: int
    num_adapter_loads: int
    cpu_s: float
    mean_adapters_running: float
    """Distinct adapters in a step, averaged over steps."""


class MeteredPolicy(PassThrough):
    """A policy that is listened to: what every request received in a step, priced, by client. Changes nothing."""

    def __init__(self, policy: Policy, cost: CostFunction) -> None:
        super().__init__(policy)
        self._cost = cost
        self._received: dict[object, tuple[int, int, int]] = {}
        self._step: dict[str, float] = {}
        self._moves: list[tuple[object, bool]] = []
        """Requests that were preempted (True) or taken up again (False) since the last flush, in that order."""
        self._waiting_again: set[object] = set()
        self._preempted_s: dict[object, float] = {}
        self.waits_again: dict[object, list[Interval]] = {}
        """By request: when it waited after a preemption."""

    def flush(self, log: ServiceLog, start_s: float, end_s: float) -> None:
        """The step whose calls were heard was planned at ``start_s`` and has ended at ``end_s``."""
        for client_id, cost in self._step.items():
            log.add(client_id, end_s, cost)
        self._step.clear()
        for request_id, is_preempted in self._moves:
            if is_preempted:
                self._preempted_s[request_id] = start_s
            elif (since_s := self._preempted_s.pop(request_id)) < start_s:
                self.waits_again.setdefault(request_id, []).append((since_s, start_s))
        self._moves.clear()

    def admitted(self, request: Schedulable, planned: Service) -> None:
        """Note that it waits no more, if it was preempted, and pass it on."""
        if request.request_id in self._waiting_again:
            self._waiting_again.remove(request.request_id)
            self._moves.append((request.request_id, False))
        super().admitted(request, planned)

    def requeued(self, request: Schedulable) -> None:
        """Note that it waits again, and pass it on."""
        self._waiting_again.add(request.request_id)
        self._moves.append((request.request_id, True))
        super().requeued(request)

    def charge(self, request: Schedulable, service: Service) -> None:
        """Note the price of what was received, and pass it on."""
        before = self._received.get(request.request_id)
        prefill, cached, decode = before or (0, 0, 0)
        priced = self._cost(prefill, decode, cached) if before else 0.0
        after = (prefill + service.prefill_tokens, cached + service.cached_tokens, decode + service.decode_tokens)
        self._received[request.request_id] = after
        amount = self._cost(after[0], after[2], after[1]) - priced
        self._step[request.client_id] = self._step.get(request.client_id, 0.0) + amount
        super().charge(request, service)

    def settle(self, request: Schedulable) -> None:
        """Forget the request, and pass it on."""
        self._received.pop(request.request_id, None)
        if request.request_id in self._waiting_again:
            self._waiting_again.remove(request.request_id)
            self._moves.append((request.request_id, False))
        super().settle(request)


def replay(
    trace: Trace,
    policy: str,
    server: ServerSettings,
    step_time: StepTime,
    *,
    shares: ClientShares | None = None,
    cost: CostFunction | None = None,
    seed: int = 0,
    shed: str = "none",
    slo_ttft_s: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Replay:
    """Serve the trace to its last token, or shed what comes too late. ``progress`` is told the virtual time now and then.

    Raises RegistryError for an unknown policy, ConfigError for a request that the server can never hold.
    """
    started_s = time.process_time()
    price = cost or WeightedTokens()
    shares = shares or ClientShares()
    own_weights = {**trace.weight_by_client, **shares.weight_by_client}
    weight_of = tiered(own_weights, shares.tier_by_client, shares.weight_by_tier)
    weight_by_client = {client: weight_of(client) for client in {*own_weights, *shares.tier_by_client}}
    queues = ClientQueues()
    chosen = create_policy(
        policy,
        queues=queues,
        weights=own_weights,
        cost=price,
        seed=seed,
        is_simulation=True,
        tier_by_client=shares.tier_by_client,
        weight_by_tier=shares.weight_by_tier,
    )
    longest = int((trace.input_len + trace.output_len).max()) if len(trace) else 1
    if longest >= server.pool_tokens:
        raise ConfigError(f"the longest request of {trace.name} has {longest} tokens; the pool holds {server.pool_tokens}")
    # the limit that a request states is far above its true length: nothing may learn the length from it
    max_output = max(1024, 2 * int(trace.output_len.max())) if len(trace) else 1
    metered = MeteredPolicy(chosen, price)
    shedding = create_shedding(shed, slo_ttft_s)
    scheduler = server.scheduler(metered, queues, max_model_len=longest + max_output, shedding=shedding)
    service = ServiceLog()
    told = num_adapters = 0

    def observe(plan: StepPlan, start_s: float, end_s: float) -> None:
        nonlocal told, num_adapters
        metered.flush(service, start_s, end_s)
        told += 1
        num_adapters += len({sequence.adapter_slot for sequence in plan.sequences} - {NO_ADAPTER_SLOT})
        if progress is not None and told % 200 == 0:
            progress(end_s)

    requests = requests_of(trace, max_output, server.serves_adapters)
    result = simulate(scheduler, requests, step_time, observe=observe)
    records = [
        RequestRecord(
            request.client_id,
            request.arrival_s,
            request.num_prompt_tokens,
            request.num_output_tokens,
            request.known_output_tokens or 0,
            is_rejected=request.request_id in result.verdicts,
            is_shed=request.finish_reason is FinishReason.SHED,
            admitted_s=request.admitted_s,
            first_token_s=request.first_token_s,
            finished_s=request.finished_s,
            waits_again=metered.waits_again.get(request.request_id, []),
        )
        for request in result.requests
    ]
    log = RunLog(records, service, result.total_s, weight_by_client, price, server.pool_tokens)
    snapshot = scheduler.snapshot()
    return Replay(
        policy,
        seed,
        log,
        result.num_steps,
        snapshot.num_preemptions,
        snapshot.num_adapter_loads,
        time.process_time() - started_s,
        num_adapters / max(told, 1),
    )
