"""Fairness of the shipped scheduler on a virtual clock: the paper's claims, measured end to end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.books.weights import Weights
from evenflow.fairness.registry import create_policy
from evenflow.serving.core.plan import StepPlan
from evenflow.serving.core.request import ClientId, FinishReason, Request, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.engine.simulated import LinearStepTime, Simulation, simulate
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler import (
    ExclusivePrefillRule,
    KnownPeak,
    MixedBatchRule,
    PredictAndPreempt,
    Scheduler,
    SchedulerLimits,
)

STEP_TIME = LinearStepTime(base_s=0.022, per_token_s=0.00022, per_context_token_s=1.7e-6)


def a_scheduler(
    policy: str,
    *,
    pool_tokens: int = 4096,
    max_num_seqs: int = 256,
    is_papers_server: bool = False,
    weights: Weights | None = None,
) -> Scheduler:
    queues = ClientQueues()
    page_tokens = 1 if is_papers_server else 16
    arena = Arena(pool_tokens // page_tokens)
    return Scheduler(
        policy=create_policy(policy, queues=queues, weights=weights),
        queues=queues,
        arena=arena,
        residency=Residency(arena, lambda digest: pytest.fail("no adapters here")),
        limits=SchedulerLimits(
            max_num_seqs=max_num_seqs, max_batch_tokens=512, max_model_len=pool_tokens, page_tokens=page_tokens
        ),
        batch_rule=ExclusivePrefillRule(max_prefill_tokens=3072) if is_papers_server else MixedBatchRule(),
        admission=KnownPeak() if is_papers_server else PredictAndPreempt(),
    )


@dataclass(frozen=True)
class Job:
    """One request of a workload."""

    arrival_s: float
    client: str
    num_input: int
    num_output: int


def requests_of(jobs: Iterable[Job]) -> list[Request]:
    return [
        Request(
            RequestId(f"{job.client}-{i}"),
            ClientId(job.client),
            [0] * job.num_input,
            GREEDY,
            job.arrival_s,
            max_output_tokens=job.num_output,
            known_output_tokens=job.num_output,
        )
        for i, job in enumerate(sorted(jobs, key=lambda job: job.arrival_s))
    ]


def waits_of(simulation: Simulation, client: str, after_s: float = 0.0) -> list[float]:
    return [
        request.first_token_s - request.arrival_s
        for request in simulation.requests
        if request.client_id == client and request.arrival_s >= after_s and request.first_token_s is not None
    ]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("is_papers_server", [False, True])
def test_everybody_is_served_to_the_last_token(is_papers_server: bool) -> None:
    jobs = [Job(0.1 * i, "abc"[i % 3], 10 + 37 * i % 300, 1 + 53 * i % 200) for i in range(120)]
    scheduler = a_scheduler("vtc", is_papers_server=is_papers_server)
    simulation = simulate(scheduler, requests_of(jobs), STEP_TIME)
    assert len(simulation.requests) == 120
    for request in simulation.requests:
        assert request.finish_reason is FinishReason.LENGTH
        times_s = simulation.token_times_s[request.request_id]
        assert len(times_s) == request.num_output_tokens == request.known_output_tokens
        assert request.first_token_s == times_s[0]
        assert request.finished_s == times_s[-1]
        assert request.arrival_s <= (request.admitted_s or 0.0) < times_s[0]
        assert times_s == sorted(set(times_s))
    snapshot = scheduler.snapshot()
    assert snapshot.prompt_tokens == sum(job.num_input for job in jobs)
    assert snapshot.completion_tokens == sum(job.num_output for job in jobs)
    assert snapshot.num_free_pages == snapshot.num_pages
    scheduler.check_integrity()


def test_one_aborted_after_ten_tokens_is_charged_for_ten() -> None:
    scheduler = a_scheduler("vtc")
    jobs = [Job(0.0, "a", 12, 1000), *(Job(0.0, "b", 50, 40) for _ in range(4)), *(Job(0.0, "a", 7, 100) for _ in range(400))]
    charged: list[float] = []

    def abort_after_ten(plan: StepPlan, start_s: float, end_s: float) -> None:
        first = scheduler.get(RequestId("a-0"))
        if first is not None and first.num_output_tokens == 10:
            before = scheduler.policy.counters()["a"]
            received = 12 + sum(
                r.num_prompt_tokens + 2 * r.num_output_tokens
                for r in everybody
                if r.client_id == "a" and r is not first and r.admitted_s is not None
            )
            scheduler.abort(first.request_id, end_s)
            assert scheduler.policy.counters()["a"] == before, "an abort changes nothing once the prompt is in"
            charged.append(before - received + 12)

    everybody = requests_of(jobs)
    simulate(scheduler, everybody, STEP_TIME, until_s=3.0, observe=abort_after_ten)
    assert charged == [12 + 2 * 10]


def test_a_burst_after_idleness_does_not_starve_the_steady_client() -> None:
    """B was away and comes back with 150 requests at once. Without a lift (LCF) B catches up first: no better than FCFS."""
    steady = [Job(i / 0.7, "a", 256, 256) for i in range(int(0.7 * 300))]
    burst = [Job(150.0, "b", 256, 256) for _ in range(150)]
    wait_s = {}
    for policy in ("fcfs", "lcf", "vtc"):
        scheduler = a_scheduler(policy, pool_tokens=10_000, is_papers_server=True)
        simulation = simulate(scheduler, requests_of(steady + burst), STEP_TIME)
        wait_s[policy] = mean(waits_of(simulation, "a", after_s=150.0))
    assert wait_s["fcfs"] > 30.0
    assert wait_s["lcf"] > 30.0
    assert wait_s["vtc"] < 8.0


@pytest.mark.parametrize("is_papers_server", [False, True])
def test_weights_divide_the_service_of_equal_demands(is_papers_server: bool) -> None:
    weights = {"w1": 1.0, "w2": 2.0, "w3": 3.0, "w4": 4.0}
    jobs = [Job(0.0, client, 64, 64) for client in weights for _ in range(200)]
    scheduler = a_scheduler("vtc", weights=weights, is_papers_server=is_papers_server)
    simulation = simulate(scheduler, requests_of(jobs), STEP_TIME, until_s=25.0)
    served: dict[str, float] = defaultdict(float)
    for request in simulation.requests:
        if request.admitted_s is not None:
            served[request.client_id] += request.num_prompt_tokens + 2 * request.num_output_tokens
    assert all(scheduler.clients[client].num_waiting for client in weights), "all must still be backlogged"
    total = sum(served.values())
    for client, weight in weights.items():
        assert served[client] / total == pytest.approx(weight / 10, abs=0.02)


def test_a_quiet_client_gets_the_first_slot_that_frees() -> None:
    jobs = [Job(0.0, "flood", 20, 40 + i) for i in range(64)] + [Job(0.3, "quiet", 20, 20)]
    position: dict[str, int] = {}
    wait_s: dict[str, float] = {}
    for policy in ("fcfs", "vtc"):
        scheduler = a_scheduler(policy, max_num_seqs=8)
        simulation = simulate(scheduler, requests_of(jobs), STEP_TIME)
        starts = sorted(simulation.requests, key=lambda r: (r.admitted_s, r.arrival_s))
        later = [r.client_id for r in starts if r.admitted_s is not None and r.admitted_s >= 0.3]
        position[policy] = later.index(ClientId("quiet"))
        wait_s[policy] = waits_of(simulation, "quiet")[0]
    assert position == {"fcfs": 56, "vtc": 0}
    assert wait_s["fcfs"] > 4 * wait_s["vtc"]


jobs_of_two = st.lists(
    st.builds(
        Job,
        arrival_s=st.floats(0, 20),
        client=st.sampled_from(["a", "b", "c"]),
        num_input=st.integers(1, 200),
        num_output=st.integers(1, 150),
    ),
    min_size=20,
    max_size=120,
)


@given(jobs=jobs_of_two, is_papers_server=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_papers_bounds_hold(jobs: list[Job], is_papers_server: bool) -> None:
    """Lemma 4.3 (counters of waiting clients within U) and theorem 4.4 (services of two backlogged clients within 2 U).

    The lemma's M is the tokens of a running batch. The newest token of each request has no K and V yet, so that is the
    pool's tokens and one for each request that runs.
    """
    pool_tokens, max_num_seqs = 512, 64
    bound = max(1.0 * 200, 2.0 * (pool_tokens + max_num_seqs))
    scheduler = a_scheduler("vtc", pool_tokens=pool_tokens, max_num_seqs=max_num_seqs, is_papers_server=is_papers_server)
    requests = requests_of(jobs)
    both_since: dict[tuple[str, str], tuple[float, float]] = {}

    def service(client: str) -> float:
        return sum(
            request.num_prompt_tokens + 2.0 * request.num_output_tokens
            for request in requests
            if request.client_id == client and request.admitted_s is not None
        )

    def check(plan: StepPlan, start_s: float, end_s: float) -> None:
        waiting = [client for client, tally in scheduler.clients.items() if tally.num_waiting]
        counters = [scheduler.policy.counters()[client] for client in waiting]
        if counters:
            assert max(counters) - min(counters) <= bound
        for pair in combinations("abc", 2):
            if not set(pair) <= set(waiting):
                both_since.pop(pair, None)
                continue
            now = (service(pair[0]), service(pair[1]))
            before = both_since.setdefault(pair, now)
            assert abs((now[0] - before[0]) - (now[1] - before[1])) <= 2 * bound

    simulate(scheduler, requests, STEP_TIME, observe=check)
    scheduler.check_integrity()


def test_rejected_requests_are_reported_and_leave_nothing_behind() -> None:
    scheduler = a_scheduler("rpm:2")
    simulation = simulate(scheduler, requests_of(Job(0.1 * i, "a", 5, 5) for i in range(6)), STEP_TIME)
    assert len(simulation.verdicts) == 4
    assert all(verdict.retry_after_s > 0 for verdict in simulation.verdicts.values())
    assert len(simulation.token_times_s) == 2
    assert not scheduler.has_work


def test_time_stops_where_it_is_told_to() -> None:
    scheduler = a_scheduler("fcfs")
    simulation = simulate(scheduler, requests_of([Job(0.0, "a", 5, 1000)]), STEP_TIME, until_s=2.0)
    assert 2.0 <= simulation.total_s < 2.1
    assert scheduler.num_running == 1


def test_an_abort_at_a_time_ends_the_request_at_the_next_step() -> None:
    scheduler = a_scheduler("vtc")
    requests = requests_of([Job(0.0, "a", 5, 1000), Job(0.0, "b", 5, 30)])
    simulation = simulate(scheduler, requests, STEP_TIME, aborts=[(1.0, requests[0].request_id), (9.0, requests[1].request_id)])
    assert requests[0].finish_reason is FinishReason.ABORT
    assert requests[0].finished_s == pytest.approx(1.0, abs=0.05)
    assert requests[1].finish_reason is FinishReason.LENGTH
    assert simulation.num_steps < 60
