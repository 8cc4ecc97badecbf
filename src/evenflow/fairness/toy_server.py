"""The smallest server that a policy can run in: for trying a policy, for tests and for teaching. Not for serving.

It makes every call of the protocol in the order that policy.py prescribes. A request holds one unit of memory per
token that it will come to have; a step gives each running request one token and takes one second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from evenflow.fairness.books.cost import CostFunction, Service, WeightedTokens
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.measures.runlog import RequestRecord, RunLog, ServiceLog
from evenflow.fairness.policy import Policy, Verdict
from evenflow.fairness.schedulable import Schedulable


@dataclass(slots=True, eq=False)
class ToyRequest:
    """A request that will run for ``known_output_tokens``."""

    request_id: int
    client_id: str
    num_prompt_tokens: int
    known_output_tokens: int
    arrival_s: float
    adapter: str | None = None
    num_output_tokens: int = 0
    is_complete: bool = False
    is_prompt_done: bool = False
    was_admitted: bool = False
    limit_output_tokens: int = 0
    """What it may produce, which a policy may see; at least what it will."""
    preempted_s: float | None = None
    """Since when it waits again."""
    record: RequestRecord = field(repr=False, kw_only=True)

    @property
    def max_output_tokens(self) -> int:
        """What it may produce."""
        return max(self.limit_output_tokens, self.known_output_tokens)


class ToyServer:
    """``memory_tokens`` and ``max_running`` bound the batch; the first request that does not fit stops admission."""

    def __init__(
        self,
        policy: Policy,
        queues: ClientQueues,
        memory_tokens: int,
        max_running: int = 1_000_000,
        cost: CostFunction | None = None,
        adapter_bytes: int = 0,
    ) -> None:
        self.policy = policy
        self.queues = queues
        self.memory_tokens = memory_tokens
        self.max_running = max_running
        self.adapter_bytes = adapter_bytes
        self.cost = cost or WeightedTokens()
        self.now_s = 0.0
        self.running: list[ToyRequest] = []
        self.requests: list[ToyRequest] = []
        self.resident_adapters: set[str] = set()
        self.service = ServiceLog()
        self._used_tokens = 0

    def submit(
        self,
        client_id: str,
        input_tokens: int,
        output_tokens: int,
        adapter: str | None = None,
        max_output_tokens: int = 0,
    ) -> tuple[Verdict, ToyRequest]:
        """A request arrives now. Without ``max_output_tokens`` it may produce what it will."""
        record = RequestRecord(client_id, self.now_s, input_tokens, 0, output_tokens)
        request = ToyRequest(len(self.requests), client_id, input_tokens, output_tokens, self.now_s, adapter, record=record)
        request.limit_output_tokens = max_output_tokens
        self.requests.append(request)
        verdict = self.policy.arrive(request, self.now_s)
        if verdict.is_accepted:
            if self.queues.push(request):
                self.policy.backlogged(client_id)
        else:
            record.is_rejected = True
        return verdict, request

    def step(self) -> None:
        """Admit while there is room, then one token each; who is complete leaves."""
        gave_way: set[int] = set()
        while (picked := self._fitting(gave_way)) is not None:
            self._admit(picked)
        self.now_s += 1.0
        for request in list(self.running):
            self._advance(request)

    def abort(self, request: ToyRequest) -> None:
        """The client has gone."""
        client_id = request.client_id
        if request in self.running:
            self.running.remove(request)
            self._used_tokens -= self._size(request)
            self.policy.settle(request)
        else:
            is_empty = self.queues.remove(request)
            self._waits_no_more(request)
            if request.was_admitted:
                self.policy.settle(request)
            else:
                self.policy.cancelled(request)
            if is_empty:
                self.policy.emptied(client_id)
        request.record.finished_s = self.now_s
        request.record.wanted_output_tokens = request.num_output_tokens

    def preempt(self) -> ToyRequest | None:
        """The policy's victim goes back to the head of its queue; what it has produced is kept."""
        victim = self.policy.victim(self.running)
        if victim is None:
            return None
        return self._requeue(victim)

    def check_integrity(self) -> None:
        """Assert the queues' and the policy's books and the memory in use."""
        self.queues.check_integrity()
        self.policy.check_integrity(set(self.queues.clients))
        assert self._used_tokens == sum(map(self._size, self.running)) <= self.memory_tokens

    def log(self) -> RunLog:
        """The run so far, for measures."""
        records = [request.record for request in self.requests]
        return RunLog(records, self.service, self.now_s, cost=self.cost, memory_tokens=self.memory_tokens)

    @staticmethod
    def _size(request: Schedulable) -> int:
        assert isinstance(request, ToyRequest)
        return request.num_prompt_tokens + request.known_output_tokens

    def _fitting(self, gave_way: set[int]) -> ToyRequest | None:
        """The policy's next request, if it fits or somebody gives way to it. Who gave way waits for the next step."""
        while (request := self.policy.pick(self.now_s)) is not None:
            assert isinstance(request, ToyRequest)
            if request.request_id in gave_way:
                return None
            has_slot = len(self.running) < self.max_running
            if has_slot and self._used_tokens + self._size(request) <= self.memory_tokens:
                return request
            if self._size(request) > self.memory_tokens or (victim := self.policy.displaced(request, self.running)) is None:
                return None
            gave_way.add(self._requeue(victim).request_id)
        return None

    def _requeue(self, victim: Schedulable) -> ToyRequest:
        assert isinstance(victim, ToyRequest)
        self.running.remove(victim)
        self._used_tokens -= self._size(victim)
        victim.preempted_s = self.now_s
        self.queues.push_front(victim)
        self.policy.requeued(victim)
        return victim

    def _admit(self, request: ToyRequest) -> None:
        is_empty = self.queues.remove(request)
        self.policy.admitted(request, Service(prefill_tokens=request.num_prompt_tokens))
        if is_empty:
            self.policy.emptied(request.client_id)
        request.was_admitted = True
        self._waits_no_more(request)
        if request.record.admitted_s is None:
            request.record.admitted_s = self.now_s
        self.running.append(request)
        self._used_tokens += self._size(request)

    def _waits_no_more(self, request: ToyRequest) -> None:
        if request.preempted_s is not None:
            if request.preempted_s < self.now_s:
                request.record.waits_again.append((request.preempted_s, self.now_s))
            request.preempted_s = None

    def _advance(self, request: ToyRequest) -> None:
        """One token; with the first, the prompt."""
        prefill = 0 if request.is_prompt_done else request.num_prompt_tokens
        loaded = 0
        if request.adapter is not None and request.adapter not in self.resident_adapters:
            self.resident_adapters.add(request.adapter)
            loaded = self.adapter_bytes
        before = self.cost(request.num_prompt_tokens, request.num_output_tokens) if request.is_prompt_done else 0.0
        request.is_prompt_done = True
        request.num_output_tokens += 1
        record = request.record
        record.output_tokens = request.num_output_tokens
        self.service.add(
            request.client_id, self.now_s, self.cost(request.num_prompt_tokens, request.num_output_tokens) - before
        )
        self.policy.charge(request, Service(prefill_tokens=prefill, decode_tokens=1, adapter_bytes=loaded))
        if record.first_token_s is None:
            record.first_token_s = self.now_s
        if request.num_output_tokens == request.known_output_tokens:
            request.is_complete = True
            record.finished_s = self.now_s
            self.running.remove(request)
            self._used_tokens -= self._size(request)
            self.policy.settle(request)
