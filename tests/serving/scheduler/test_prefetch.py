"""Adapters of waiting requests are there when their turn comes, and nobody pays for it with memory."""

from __future__ import annotations

import pytest

from evenflow.base.errors import AdapterNotFound, ConfigError
from evenflow.bench.lora.baselines.partition import PartitionedArena
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.policy import Schedulable, Service
from evenflow.fairness.registry import create_policy, policy_registry
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.plan import SampledToken, StepResult
from evenflow.serving.core.request import AdapterDigest, ClientId, FinishReason, Request, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler import BudgetedPrefetch, Scheduler, SchedulerLimits

SIZES = {AdapterDigest(name): pages for name, pages in {"a": 2, "b": 2, "c": 5, "d": 3, "e": 30}.items()}


class Server:
    def __init__(self, *, num_pages=40, max_num_seqs=1, policy="vtc", arena=None, **limits):
        self.queues = ClientQueues()
        self.arena = arena or Arena(num_pages)
        self.records = {d: AdapterRecord(d, AdapterSignature(()), n, 100 * n) for d, n in SIZES.items()}
        self.residency = Residency(self.arena, self.lookup)
        self.policy = create_policy(policy, queues=self.queues, is_simulation=True)
        self.scheduler = Scheduler(
            policy=self.policy,
            queues=self.queues,
            arena=self.arena,
            residency=self.residency,
            limits=SchedulerLimits(max_num_seqs=max_num_seqs, max_batch_tokens=64, max_model_len=256, page_tokens=4),
            prefetch=BudgetedPrefetch(**{"step_pages": 2, "held_pages": 20, "page_tokens": 4, **limits}),
        )
        self.num_requests = 0

    def lookup(self, digest):
        if digest not in self.records:
            raise AdapterNotFound(f"no {digest}")
        return self.records[digest]

    def add(self, adapter, client="c", num_prompt=4, num_output=20):
        self.num_requests += 1
        request = Request(
            RequestId(f"r{self.num_requests}"), ClientId(client), [0] * num_prompt, GREEDY, float(self.num_requests),
            None if adapter is None else AdapterDigest(adapter), max_output_tokens=num_output, known_output_tokens=num_output,
        )  # fmt: skip
        assert self.scheduler.add(request, 0.0).is_accepted
        return request

    def step(self):
        plan = self.scheduler.plan(0.0)
        assert plan is not None
        self.scheduler.check_integrity()
        tokens = {s.request_id: SampledToken(0) for s in plan.sequences if s.sample is not None}
        done = {
            r: FinishReason.LENGTH
            for r in tokens
            if (request := self.scheduler.get(r)).num_output_tokens + 1 >= request.max_output_tokens
        }
        self.scheduler.commit(StepResult(plan.step, tokens, {}), done, 0.0)
        self.scheduler.check_integrity()
        return plan.loads

    def loads(self):
        return [(load.digest, load.first, load.stop, load.is_prefetch) for load in self.step()]


def test_adapters_of_waiting_requests_are_loaded_in_parts_in_their_order():
    server = Server()
    server.add(None)
    server.add("c")
    server.add("a")
    assert [server.loads() for _ in range(5)] == [
        [("c", 0, 2, True)],
        [("c", 2, 4, True)],
        [("c", 4, 5, True), ("a", 0, 1, True)],
        [("a", 1, 2, True)],
        [],
    ]
    assert server.residency.num_prefetches == 2
    assert server.residency.is_loaded(AdapterDigest("c"))


def test_a_request_that_starts_before_its_adapter_is_complete_gets_the_rest_at_once():
    server = Server()
    server.add(None, num_output=2)
    waiting = server.add("c")
    server.step()
    assert server.loads() == [("c", 2, 4, True)]
    assert server.loads() == [("c", 4, 5, False)]
    assert waiting.admitted_s is not None


def test_who_waited_for_a_prefetch_is_charged_for_its_bytes_once():
    server = Server(policy="vtc")
    charged = []
    real = server.policy.admitted

    def admitted(request: Schedulable, planned: Service) -> None:
        charged.append(planned.adapter_bytes)
        real(request, planned)

    server.policy.admitted = admitted
    server.add(None, num_output=3)
    server.add("a", num_output=1)
    server.add("a", num_output=1)
    for _ in range(5):
        server.step()
    assert charged == [0, 200, 0]


def test_the_policys_order_decides_not_arrival():
    server = Server()
    server.add(None, client="greedy")
    server.add("c", client="greedy")
    assert server.loads() == [("c", 0, 2, True)]
    server.add("b", client="modest")  # comes in at the greedy one's counter, which rises with every token
    assert [server.loads() for _ in range(3)] == [[("c", 2, 4, True)], [("b", 0, 2, True)], [("c", 4, 5, True)]]


def test_pages_for_the_growth_of_what_runs_stay_free():
    server = Server(num_pages=14, reserve_per_running=3)
    server.add(None)  # takes 1 page, may grow into 3, and the first in line needs 1 for its prompt
    server.add("c")
    server.add("a")
    for _ in range(3):
        server.step()
    assert server.residency.num_prefetched_pages == 5 + 2, "14 - 1 - 5 - 2 leave 6"
    server = Server(num_pages=14, reserve_per_running=6)
    server.add(None)
    server.add("c")
    server.add("a")
    for _ in range(3):
        server.step()
        assert server.arena.num_free >= 7
    assert server.residency.num_prefetched_pages == 5
    assert not server.residency.is_resident(AdapterDigest("a"))


def test_an_idle_adapter_that_nobody_waits_for_gives_way_and_a_wanted_one_does_not():
    server = Server(num_pages=12)
    for name in ("d", "b"):  # both idle afterwards: d the longer
        server.add(name, num_output=1)
        server.step()
    server.add(None, num_output=30)
    server.add("c")
    server.step()
    assert not server.residency.is_resident(AdapterDigest("d"))
    assert server.residency.is_resident(AdapterDigest("b"))
    server = Server(num_pages=12)
    for name in ("d", "b"):
        server.add(name, num_output=1)
        server.step()
    server.add(None, num_output=30)
    server.add("c")
    server.add("d")
    server.step()
    assert server.residency.is_resident(AdapterDigest("d")), "a request waits for it too"
    assert not server.residency.is_resident(AdapterDigest("c"))


def test_kv_takes_back_what_a_prefetch_has_taken():
    server = Server(num_pages=12, reserve_per_running=0)
    running = server.add(None, num_prompt=4, num_output=36)
    server.add("c")
    for _ in range(36):
        server.step()
    assert running.finish_reason is FinishReason.LENGTH
    assert running.num_preemptions == 0, "a prefetch cost somebody his place"
    assert server.residency.num_wasted_prefetches >= 1


def test_admission_finds_the_same_room_with_and_without_what_was_prefetched():
    server = Server(num_pages=12)
    server.add(None, num_output=30)
    server.add("c", client="x", num_output=4)
    server.step()
    assert server.residency.num_prefetched_pages == 5
    memory = server.scheduler._running.memory_for(server.scheduler.get(RequestId("r2")), server.records[AdapterDigest("c")])
    assert memory.num_available_pages == 12 - 1 - 5
    server.residency.forget(AdapterDigest("c"))
    memory = server.scheduler._running.memory_for(server.scheduler.get(RequestId("r2")), server.records[AdapterDigest("c")])
    assert memory.num_available_pages == 12 - 1 - 5


def test_a_request_that_goes_takes_its_unfinished_prefetch_with_it():
    server = Server()
    server.add(None)
    waiting = server.add("c")
    server.step()
    assert server.residency.num_prefetched_pages == 5
    server.scheduler.abort(waiting.request_id, 0.0)
    assert server.loads() == []
    assert server.residency.num_prefetched_pages == 0
    assert server.residency.num_resident == 0


def test_what_is_unloaded_while_it_is_being_prefetched_leaves_nothing():
    server = Server()
    server.add(None, num_output=4)
    waiting = server.add("c")
    server.step()
    digest = AdapterDigest("c")
    del server.records[digest]  # what unloading does in the end: nobody may be using it
    assert server.residency.forget(digest)
    for _ in range(3):
        assert server.loads() == []
    assert server.arena.num_owned("adapter") == 0
    assert server.scheduler.plan(0.0) is None
    [ended] = server.scheduler.take_ended()
    assert ended.request is waiting
    assert "no c" in ended.message


def test_what_may_be_held_is_bounded_and_an_adapter_too_large_for_it_waits_for_its_request():
    server = Server(num_pages=60, held_pages=6)
    server.add(None)
    server.add("c")
    server.add("d")
    for _ in range(4):
        server.step()
    assert server.residency.num_prefetched_pages == 5
    server = Server(num_pages=60, held_pages=6)
    server.add(None)
    server.add("e")
    assert server.loads() == []


def test_adapters_with_pages_of_their_own_need_no_reserve():
    server = Server(arena=PartitionedArena(20, 5), reserve_per_running=100)
    server.add(None)
    server.add("c")
    assert server.loads() == [("c", 0, 2, True)]


@pytest.mark.parametrize("policy", [name for name in policy_registry() if name not in ("rpm", "vtc-shared")])
def test_every_policy_can_be_looked_ahead_of(policy):
    server = Server(policy=policy, num_pages=80)
    server.add(None)
    server.add("a", client="x")
    server.add("b", client="y")
    for _ in range(3):
        server.step()
    assert server.residency.is_loaded(AdapterDigest("a")) or server.residency.is_loaded(AdapterDigest("b"))


@pytest.mark.parametrize("field", ["step_pages", "held_pages", "page_tokens", "lookahead"])
def test_limits_out_of_range(field):
    with pytest.raises(ConfigError, match=f"{field} of the prefetch is 0; allowed: 1 or more"):
        BudgetedPrefetch(**{"step_pages": 1, "held_pages": 1, "page_tokens": 1, field: 0})
