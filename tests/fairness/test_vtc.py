"""VTC against the paper's algorithm written down naively: every client remembered for ever, every minimum a scan."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evenflow.base.errors import ConfigError
from evenflow.fairness.books.cost import Service
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.policies.vtc import VTC

WEIGHTS = {"half": 0.5, "double": 2.0}
CLIENTS = ("a", "b", "c", "half", "double")


@dataclass(eq=False)
class Job:
    """The least that a policy reads of a request."""

    request_id: int
    client_id: str
    num_prompt_tokens: int = 4
    arrival_s: float = 0.0
    adapter: str | None = None
    num_output_tokens: int = 0
    max_output_tokens: int = 100
    known_output_tokens: int | None = None
    is_complete: bool = False


@dataclass
class Paper:
    """Algorithm 2 of the VTC paper, weighted, without any forgetting."""

    counters: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLIENTS, 0.0))
    last_left: str | None = None

    def backlogged(self, client: str, others_waiting: set[str]) -> None:
        if others_waiting:
            lift = min(self.counters[other] for other in others_waiting)
        else:
            lift = 0.0 if self.last_left is None else self.counters[self.last_left]
        self.counters[client] = max(self.counters[client], lift)

    def charge(self, client: str, cost: float) -> None:
        self.counters[client] += cost / WEIGHTS.get(client, 1.0)


class VTCMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.queues = ClientQueues()
        self.policy = VTC(self.queues, WEIGHTS)
        self.paper = Paper()
        self.running: list[Job] = []
        self.num_jobs = 0

    @rule(client=st.sampled_from(CLIENTS), num_prompt=st.integers(1, 20), count=st.integers(1, 3))
    def arrive(self, client: str, num_prompt: int, count: int) -> None:
        for _ in range(count):
            self.num_jobs += 1
            job = Job(self.num_jobs, client, num_prompt, float(self.num_jobs))
            others = set(self.queues.clients)
            assert self.policy.arrive(job, job.arrival_s).is_accepted
            if self.queues.push(job):
                self.policy.backlogged(client)
                self.paper.backlogged(client, others)

    @rule()
    def admit(self) -> None:
        job = self.policy.pick(0.0)
        waiting = set(self.queues.clients)
        if not waiting:
            assert job is None
            return
        assert job is not None
        assert self.paper.counters[job.client_id] == min(self.paper.counters[client] for client in waiting)
        assert job is self.queues.head(job.client_id)
        is_last = self.queues.remove(job)
        self.policy.admitted(job, Service(prefill_tokens=job.num_prompt_tokens))
        self.paper.charge(job.client_id, job.num_prompt_tokens)
        if is_last:
            self.policy.emptied(job.client_id)
            self.paper.last_left = job.client_id
        # The prompt is computed before anything else can end the request, so that nothing is refunded.
        self.policy.charge(job, Service(prefill_tokens=job.num_prompt_tokens))
        self.running.append(job)

    @rule(index=st.integers(0, 20), count=st.integers(1, 30))
    def decode(self, index: int, count: int) -> None:
        if self.running:
            job = self.running[index % len(self.running)]
            for _ in range(count):
                self.policy.charge(job, Service(decode_tokens=1))
                job.num_output_tokens += 1
            self.paper.charge(job.client_id, 2 * count)

    @rule(index=st.integers(0, 20))
    def end(self, index: int) -> None:
        if self.running:
            self.policy.settle(self.running.pop(index % len(self.running)))

    @rule(client=st.sampled_from(CLIENTS), index=st.integers(0, 20))
    def cancel(self, client: str, index: int) -> None:
        waiting = list(self.queues.waiting(client))
        if waiting:
            job = waiting[index % len(waiting)]
            is_last = self.queues.remove(job)
            self.policy.cancelled(job)
            if is_last:
                self.policy.emptied(client)
                self.paper.last_left = client

    @invariant()
    def counters_are_the_papers(self) -> None:
        self.policy.check_integrity(set(self.queues.clients))
        known = self.policy.counters()
        for client in self.queues.clients:
            assert known[client] == self.paper.counters[client]
        for job in self.running:
            assert known[job.client_id] == self.paper.counters[job.client_id]

    @invariant()
    def the_virtual_time_covers_both_lift_rules(self) -> None:
        waiting = set(self.queues.clients)
        before = dict(self.paper.counters)
        self.paper.counters["nobody"] = 0.0
        self.paper.backlogged("nobody", waiting)
        assert self.policy.virtual_time == self.paper.counters["nobody"]
        self.paper.counters = before


TestVTC = VTCMachine.TestCase


def queue_up(policy: VTC, queues: ClientQueues, job: Job) -> None:
    assert policy.arrive(job, job.arrival_s).is_accepted
    if queues.push(job):
        policy.backlogged(job.client_id)


def admit(policy: VTC, queues: ClientQueues) -> Job:
    job = policy.pick(0.0)
    assert isinstance(job, Job)
    is_last = queues.remove(job)
    policy.admitted(job, Service(prefill_tokens=job.num_prompt_tokens))
    if is_last:
        policy.emptied(job.client_id)
    return job


def test_the_input_is_charged_before_the_next_pick() -> None:
    queues = ClientQueues()
    policy = VTC(queues)
    for i, client in enumerate("aaabbb"):
        queue_up(policy, queues, Job(i, client))
    assert [admit(policy, queues).client_id for _ in range(6)] == ["a", "b", "a", "b", "a", "b"]


def test_idle_clients_are_forgotten() -> None:
    queues = ClientQueues()
    policy = VTC(queues)
    for i in range(1000):
        queue_up(policy, queues, Job(i, f"client{i}"))
        job = admit(policy, queues)
        policy.charge(job, Service(prefill_tokens=4, decode_tokens=1))
        policy.settle(job)
        policy.check_integrity(set())
    assert len(policy.counters()) == 0
    assert policy.virtual_time == 1000 * 6.0, "each came after the one before had left, and was lifted to it"


def test_a_client_in_debt_is_remembered_until_the_others_have_caught_up() -> None:
    queues = ClientQueues()
    policy = VTC(queues)
    queue_up(policy, queues, Job(0, "greedy"))
    queue_up(policy, queues, Job(1, "quiet"))
    queue_up(policy, queues, Job(2, "quiet"))
    greedy = admit(policy, queues)
    policy.charge(greedy, Service(prefill_tokens=4, decode_tokens=50))
    policy.settle(greedy)
    assert policy.counters()["greedy"] == 104
    queue_up(policy, queues, Job(3, "greedy"))
    assert [admit(policy, queues).client_id for _ in range(3)] == ["quiet", "quiet", "greedy"]


def test_aborted_before_its_prompt_was_computed_it_pays_for_what_was_computed() -> None:
    queues = ClientQueues()
    policy = VTC(queues)
    queue_up(policy, queues, Job(0, "a", num_prompt_tokens=1000))
    queue_up(policy, queues, Job(1, "a"))
    job = admit(policy, queues)
    assert policy.counters()["a"] == 1000
    policy.charge(job, Service(prefill_tokens=300))
    policy.settle(job)
    assert policy.counters()["a"] == 300
    policy.check_integrity({"a"})


def test_a_preempted_request_comes_back_without_lift_and_is_not_charged_again() -> None:
    queues = ClientQueues()
    policy = VTC(queues)
    queue_up(policy, queues, Job(0, "a"))
    job = admit(policy, queues)
    policy.charge(job, Service(prefill_tokens=4, decode_tokens=3))
    for i in range(1, 4):
        queue_up(policy, queues, Job(i, "b", num_prompt_tokens=50))
    other = admit(policy, queues)
    assert policy.counters() == {"a": 10.0, "b": 60.0}
    queues.push_front(job)
    policy.requeued(job)
    assert policy.counters()["a"] == 10.0
    assert admit(policy, queues) is job
    assert policy.counters()["a"] == 10.0
    policy.charge(job, Service(recomputed_tokens=7, decode_tokens=1))
    assert policy.counters()["a"] == 12.0
    policy.settle(job)
    policy.settle(other)
    policy.check_integrity({"b"})


def test_the_victim_is_the_newest_request_of_the_client_that_has_had_the_most() -> None:
    queues = ClientQueues()
    policy = VTC(queues)
    jobs = [Job(0, "a", arrival_s=0.0), Job(1, "b", arrival_s=1.0), Job(2, "a", arrival_s=2.0), Job(3, "b", arrival_s=3.0)]
    for job in jobs:
        queue_up(policy, queues, job)
    for _ in jobs:
        admit(policy, queues)
    policy.charge(jobs[0], Service(decode_tokens=5))
    assert policy.victim(jobs) is jobs[2]
    policy.charge(jobs[1], Service(decode_tokens=6))
    assert policy.victim(jobs) is jobs[3]
    assert policy.victim([]) is None


def test_weights_are_read_when_a_request_is_admitted() -> None:
    queues = ClientQueues()
    weights = {"a": 1.0}
    policy = VTC(queues, weights)
    for i in range(3):
        queue_up(policy, queues, Job(i, "a", num_prompt_tokens=8))
    admit(policy, queues)
    assert policy.counters()["a"] == 8.0
    weights["a"] = 4.0
    admit(policy, queues)
    assert policy.counters()["a"] == 10.0


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="'a'"):
        VTC(ClientQueues(), {"a": weight})
