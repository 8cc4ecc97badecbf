"""The scheduler under random adds, steps, aborts, pins and unloads, in arenas where nothing ever fits comfortably.

Every output is compared with what the request would have got alone, every charge with what it received.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from kv_oracle import KVOracle, alone

from evenflow.base.errors import AdapterError, PromptTooLong
from evenflow.bench.lora.baselines.partition import PartitionedArena
from evenflow.fairness.books.cost import Service
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.policies.vtc import VTC
from evenflow.fairness.policy import Policy
from evenflow.fairness.registry import create_policy, policy_registry
from evenflow.fairness.schedulable import Schedulable
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.request import AdapterDigest, ClientId, FinishReason, Request, RequestId, RequestState
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.eviction import EVICTION_ORDERS
from evenflow.serving.memory.prefix_cache import PrefixCache
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler import (
    BudgetedPrefetch,
    ExclusivePrefillRule,
    KnownPeak,
    MixedBatchRule,
    PredictAndPreempt,
    Scheduler,
    SchedulerLimits,
    create_shedding,
)

ADAPTER_PAGES = {AdapterDigest("x"): 1, AdapterDigest("y"): 2, AdapterDigest("z"): 4}
RECORDS = {digest: AdapterRecord(digest, AdapterSignature(()), pages, pages * 10) for digest, pages in ADAPTER_PAGES.items()}
CLIENTS = ("a", "b", "c")
ELSEWHERE = ("rpm", "vtc-shared")
"""Policies that reject, or need a server of their own: not for these rules."""
POLICIES = [*(name for name in policy_registry() if name not in ELSEWHERE), "vtc-preempt:5", "drr:10", "cluster:1:2+vtc"]
SHEDDINGS = [("none", None), ("paper:0.5", 3.0), ("predict", 3.0), ("predict", None)]


class BookedVTC(VTC):
    """VTC that notes, request by request, what was charged and what was received."""

    def __init__(self, queues: ClientQueues) -> None:
        super().__init__(queues)
        self.received: dict[Hashable, Service] = {}
        self.charged: dict[Hashable, float] = {}

    def charge(self, request: Schedulable, service: Service) -> None:
        super().charge(request, service)
        self.received[request.request_id] = self.received.get(request.request_id, Service()) + service

    def settle(self, request: Schedulable) -> None:
        account = self._accounts[request.request_id]
        super().settle(request)
        self.charged[request.request_id] = account.bill.service


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        policy=st.sampled_from(["booked", *POLICIES]),
        is_mixed=st.booleans(),
        knows_lengths=st.booleans(),
        num_pages=st.integers(2, 14),
        num_adapter_pages=st.sampled_from([None, 1, 3, 5]),
        page_tokens=st.sampled_from([1, 2, 4]),
        num_slots=st.sampled_from([1, 2, None]),
        max_num_seqs=st.integers(1, 6),
        max_batch_tokens=st.integers(6, 12),
        decode_steps=st.integers(0, 3),
        caches_prefixes=st.booleans(),
        shedding=st.sampled_from(SHEDDINGS),
        prefetch=st.none() | st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 4), st.integers(0, 2)),
        eviction=st.sampled_from(sorted(EVICTION_ORDERS)),
        window_pages=st.sampled_from([None, None, None, 0, 1, 4]),
    )
    def start(
        self,
        policy: str,
        is_mixed: bool,
        knows_lengths: bool,
        num_pages: int,
        num_adapter_pages: int | None,
        page_tokens: int,
        num_slots: int | None,
        max_num_seqs: int,
        max_batch_tokens: int,
        decode_steps: int,
        caches_prefixes: bool,
        shedding: tuple[str, float | None],
        prefetch: tuple[int, int, int, int] | None,
        eviction: str,
        window_pages: int | None,
    ) -> None:
        window = None if window_pages is None else max(1, window_pages * page_tokens)
        self.queues = ClientQueues()
        self.policy: Policy = (
            BookedVTC(self.queues) if policy == "booked" else create_policy(policy, queues=self.queues, is_simulation=True)
        )
        self.num_adapter_pages = None if num_adapter_pages is None else min(num_adapter_pages, num_pages - 1)
        self.arena = Arena(num_pages) if self.num_adapter_pages is None else PartitionedArena(num_pages, self.num_adapter_pages)
        self.residency = Residency(self.arena, RECORDS.__getitem__, num_slots=num_slots, order=EVICTION_ORDERS.load(eviction)())
        self.limits = SchedulerLimits(
            max_num_seqs=max_num_seqs,
            max_batch_tokens=max_batch_tokens,
            max_model_len=24,
            page_tokens=page_tokens,
            window=window,
        )
        self.cache = PrefixCache(self.arena, self.residency.idle_pages, page_tokens, window) if caches_prefixes else None
        self.is_mixed = is_mixed
        self.default_slo_s = shedding[1]
        self.keeps_slos = shedding[0] != "none"
        self.scheduler = Scheduler(
            policy=self.policy,
            queues=self.queues,
            arena=self.arena,
            residency=self.residency,
            limits=self.limits,
            batch_rule=MixedBatchRule() if is_mixed else ExclusivePrefillRule(max_prefill_tokens=8, decode_steps=decode_steps),
            admission=KnownPeak() if knows_lengths else PredictAndPreempt(initial_output_tokens=0.0, window=window),
            prefix_cache=self.cache,
            shedding=create_shedding(*shedding),
            prefetch=None
            if prefetch is None
            else BudgetedPrefetch(
                step_pages=prefetch[0],
                held_pages=prefetch[1],
                lookahead=prefetch[2],
                reserve_per_running=prefetch[3],
                page_tokens=page_tokens,
            ),
        )
        self.oracle = KVOracle(num_pages, page_tokens, ADAPTER_PAGES, window)
        self.requests: dict[RequestId, Request] = {}
        self.ended_early: set[RequestId] = set()
        self.damaged: set[RequestId] = set()
        self.has_pinned = False
        self.now_s = 0.0
        self.max_prompt = 0

    def fits(self, num_kv_pages: int, adapter: AdapterDigest | None) -> bool:
        """In an arena that holds nothing else."""
        num_adapter_pages = ADAPTER_PAGES[adapter] if adapter else 0
        if self.num_adapter_pages is None:
            return num_kv_pages + num_adapter_pages <= self.arena.num_pages
        side = self.arena.num_pages - self.num_adapter_pages
        return num_kv_pages <= side and num_adapter_pages <= self.num_adapter_pages

    @rule(
        client=st.sampled_from(CLIENTS),
        adapter=st.sampled_from([None, *sorted(ADAPTER_PAGES)]),
        num_prompt=st.integers(1, 14),
        num_output=st.integers(1, 10),
        conversation=st.sampled_from([0, 0, 1, 2]),
        salt=st.sampled_from(["", "", "", "s"]),
        slo_ttft_s=st.sampled_from([None, None, 0.5, 2.0, 50.0]),
    )
    def add(
        self,
        client: str,
        adapter: AdapterDigest | None,
        num_prompt: int,
        num_output: int,
        conversation: int,
        salt: str,
        slo_ttft_s: float | None,
    ) -> None:
        request = Request(
            RequestId(f"r{len(self.requests)}"),
            ClientId(client),
            [(7 * i + conversation * (i > 5)) % 50 for i in range(num_prompt)],
            GREEDY,
            self.now_s,
            adapter,
            max_output_tokens=num_output,
            known_output_tokens=num_output,
            cache_salt=salt,
            slo_ttft_s=slo_ttft_s if self.keeps_slos else None,
        )
        if not self.fits(-(-num_prompt // self.limits.page_tokens) + 1, adapter):
            with pytest.raises(PromptTooLong):
                self.scheduler.add(request, self.now_s)
            return
        assert self.scheduler.add(request, self.now_s).is_accepted
        self.requests[request.request_id] = request

    @rule(aborted_meanwhile=st.integers(0, 5), is_damaged=st.sampled_from([False, False, True]))
    def step(self, aborted_meanwhile: int, is_damaged: bool) -> None:
        self.run_step(aborted_meanwhile, is_damaged)

    def run_step(self, aborted_meanwhile: int, is_damaged: bool = False) -> bool:
        were_running = {r for r, request in self.requests.items() if request.state is RequestState.RUNNING}
        plan = self.scheduler.plan(self.now_s)
        self.note_ended()
        if plan is None:
            assert not self.scheduler.has_work, "there is work, and nothing was planned"
            return False
        rows = plan.num_tokens
        if self.is_mixed:
            assert rows <= self.limits.max_batch_tokens
        else:
            assert len(plan.sequences) == 1 or rows <= max(8, self.limits.max_num_seqs)
            assert len({s.request_id in were_running for s in plan.sequences}) == 1, "prompts beside decodes"
        assert len(plan.sequences) <= self.limits.max_num_seqs
        self.scheduler.check_integrity()
        result = self.oracle.run(plan, self.requests)
        if is_damaged and plan.loads:
            failed = plan.loads[0].digest
            result = replace(result, failed_loads={failed: "damaged"})
            self.damaged |= {r.request_id for r in self.requests.values() if r.adapter == failed}
        running = [s.request_id for s in plan.sequences]
        if aborted_meanwhile < len(running) and aborted_meanwhile >= 3:
            self.end_early(running[aborted_meanwhile])
            self.scheduler.check_integrity()
        finished = {}
        for request_id in result.tokens:
            request = self.requests[request_id]
            if request.num_output_tokens + 1 >= request.max_output_tokens:
                finished[request_id] = FinishReason.LENGTH
        self.now_s += 1.0
        self.scheduler.commit(result, finished, self.now_s)
        assert not any(self.residency.is_resident(digest) for digest in result.failed_loads)
        self.note_ended()
        return True

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        alive = [r for r in self.requests if self.scheduler.get(r) is not None]
        if alive:
            self.end_early(data.draw(st.sampled_from(alive)))

    def end_early(self, request_id: RequestId) -> None:
        was_alive = self.scheduler.get(request_id) is not None
        assert (self.scheduler.abort(request_id, self.now_s) is not None) == was_alive
        assert self.scheduler.abort(request_id, self.now_s) is None
        self.ended_early.add(request_id)

    @rule(digest=st.sampled_from(sorted(ADAPTER_PAGES)), what=st.sampled_from(["pin", "unpin", "forget"]))
    def administer(self, digest: AdapterDigest, what: str) -> None:
        if what == "pin":
            try:
                self.residency.pin(digest)
                self.has_pinned = True
            except AdapterError:
                pass
        elif what == "unpin":
            self.residency.unpin(digest)
        else:
            self.residency.forget(digest)
            if self.cache is not None:
                self.cache.forget(digest)

    def note_ended(self) -> None:
        for ended in self.scheduler.take_ended():
            request = ended.request
            assert ended.message
            self.ended_early.add(request.request_id)
            if request.finish_reason is FinishReason.SHED:
                assert request.admitted_s is None, "one that had run was given up"
                assert not request.output_token_ids
                assert request.slo_ttft_s is not None or self.default_slo_s is not None
                assert ended.predicted_ttft_s > 0
                assert ended.retry_after_s >= 1
            elif ended.error_type == "AdapterDamaged":
                assert request.request_id in self.damaged
            elif request.finish_reason is FinishReason.ERROR:
                assert self.has_pinned, "ended for lack of memory though nothing was ever pinned"
            else:
                assert request.finish_reason is FinishReason.LENGTH
                pages = -(-request.num_tokens // self.limits.page_tokens)
                assert self.has_pinned or not self.fits(pages, request.adapter), "cut though it would have fitted"

    @invariant()
    def everything_agrees(self) -> None:
        self.scheduler.check_integrity()

    @invariant()
    def outputs_are_those_of_a_request_alone(self) -> None:
        for request in self.requests.values():
            expected = alone(request.adapter, request.prompt_token_ids, request.num_output_tokens)
            assert request.output_token_ids == expected

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        budget = 400
        while self.run_step(aborted_meanwhile=0):
            self.scheduler.check_integrity()
            budget -= 1
            assert budget, "it never ends"
        assert self.scheduler.num_waiting == self.scheduler.num_running == 0
        assert self.arena.num_owned("request") == 0
        assert self.arena.num_free == self.arena.num_pages - self.arena.num_owned("adapter") - self.arena.num_owned("cache")
        if self.cache is not None:
            assert self.cache.num_idle_pages == self.arena.num_owned("cache")
            self.cache.clear()
        assert self.arena.num_owned("cache") == 0
        for request in self.requests.values():
            assert request.finish_reason is not None
            if request.request_id not in self.ended_early:
                assert request.finish_reason is FinishReason.LENGTH
                assert request.num_output_tokens == request.max_output_tokens
        self.check_charges()

    def check_charges(self) -> None:
        if not isinstance(self.policy, BookedVTC):
            return
        assert not self.policy._accounts, "an account stayed open"
        for request in self.requests.values():
            received = self.policy.received.get(request.request_id, Service())
            assert received.decode_tokens == request.num_output_tokens
            assert received.recomputed_tokens == request.num_recomputed_tokens
            if request.num_output_tokens:
                prompt = received.prefill_tokens + received.cached_tokens
                assert prompt == request.num_prompt_tokens, "the prompt counts once, preempted or not"
            assert received.prefill_tokens + received.cached_tokens <= request.num_prompt_tokens
            charged = self.policy.charged.get(request.request_id, 0.0)
            price = received.prefill_tokens + 2 * received.decode_tokens + 0.1 * received.cached_tokens
            assert charged == pytest.approx(price)


SchedulerMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase
