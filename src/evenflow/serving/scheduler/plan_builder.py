"""One step while it is being filled: who advances, who starts, and who has to make room.

Pages are found in this order: free ones, idle ones (adapters, cached prefixes), those of a preempted request.
"""

from __future__ import annotations

from collections.abc import Hashable

from evenflow.base.errors import AdapterError
from evenflow.fairness.policy import Policy
from evenflow.fairness.schedulable import Schedulable
from evenflow.serving.core.plan import PlannedSequence
from evenflow.serving.core.request import FinishReason, Request, RequestId
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler.admission import Admission
from evenflow.serving.scheduler.limits import SchedulerLimits
from evenflow.serving.scheduler.request_book import RequestBook
from evenflow.serving.scheduler.running import RunningRequest, RunningSet
from evenflow.serving.scheduler.snapshot import EndedRequest


class PlanBuilder:
    """The ``Step`` that a batch rule fills. Made for one step and thrown away."""

    def __init__(
        self,
        *,
        now_s: float,
        limits: SchedulerLimits,
        policy: Policy,
        admission: Admission,
        residency: Residency,
        running: RunningSet,
        book: RequestBook,
    ) -> None:
        self._now_s = now_s
        self._limits = limits
        self._policy = policy
        self._admission = admission
        self._residency = residency
        self._running = running
        self._book = book
        self._has_made_room = False
        self._gave_way: set[Hashable] = set()
        self.planned: dict[RequestId, tuple[RunningRequest, PlannedSequence]] = {}
        self.num_tokens = 0
        self.ended: list[EndedRequest] = []
        self.waiting_for = ""

    @property
    def limits(self) -> SchedulerLimits:
        """What a step may hold at most."""
        return self._limits

    @property
    def num_running(self) -> int:
        """Requests that run, those started in this step included."""
        return len(self._running)

    def advance(self, max_tokens: int) -> int:
        """Give running requests their next tokens: those that decode first, then prompts, urgent ones first, by admission.

        While an urgent request waits, half of the rows that decoding leaves are kept from prompts that are not.
        """
        before = self.num_tokens
        limit = before + max_tokens
        prompts: list[RunningRequest] = []
        for entry in self._running:
            if entry.num_tokens - entry.request.num_computed_tokens > 1:
                prompts.append(entry)
            elif (
                self.num_tokens < limit
                and self._is_running(entry)
                and (entry.num_tokens <= entry.table.capacity or self._make_room(entry))
            ):
                self._put(entry, 1)
        if prompts:
            running = self._running.requests()
            urgent = [entry for entry in prompts if self._policy.is_urgent(entry.request, running)]
            others = [entry for entry in prompts if entry not in urgent]
            self._compute(urgent, limit)
            is_awaited = any(self._policy.is_urgent(due, running) for due in self._policy.upcoming(1))
            self._compute(others, limit - (limit - self.num_tokens) // 2 if is_awaited else limit)
        return self.num_tokens - before

    def admit(self, max_tokens: int, *, whole_prompts: bool) -> int:
        """Start waiting requests, in the policy's order, until one does not fit (nobody is overtaken: the bound needs it).

        Who would come too late is given up first. In a step in which somebody had to make room only urgent requests start,
        or the preempted would come straight back; and one that gave way does not start again in its step. An urgent
        request needs room for its prompt now and not for growth.
        """
        self.ended += self._book.shed(self._now_s)
        before = self.num_tokens
        limit = before + max_tokens
        has_begun = False
        while self.num_tokens < limit:
            picked = self._policy.pick(self._now_s)
            if picked is None:
                self.waiting_for = "policy"
                break
            is_urgent = self._policy.is_urgent(picked, self._running.requests())
            if (self._has_made_room and not is_urgent) or picked.request_id in self._gave_way:
                self.waiting_for = "memory"
                break
            if len(self._running) >= self._limits.max_num_seqs:
                self.waiting_for = "slots"
                if self._displace(picked):
                    has_begun = False
                    continue
                break
            request = self._book.get(RequestId(str(picked.request_id)))
            assert request is not None, "the policy picked a request that does not wait"
            if whole_prompts and self.num_tokens > before and self.num_tokens + request.num_tokens > limit:
                break
            try:
                record = None if request.adapter is None else self._residency.record(request.adapter)
            except AdapterError as error:
                self._end(request, FinishReason.ERROR, str(error))
                continue
            memory = self._running.memory_for(request, record)
            if not self._running.can_start(request, record, memory):
                if len(self._running) == 0:
                    if self._running.fits_empty_arena(request, record):
                        self._end(request, FinishReason.ERROR, "pinned adapters leave too little memory for this request")
                    else:
                        self._end(request, FinishReason.LENGTH, "the request has filled the memory")
                    continue
                self.waiting_for = "memory"
                if self._displace(picked):
                    has_begun = False
                    continue
                break
            if not has_begun and not is_urgent:
                self._admission.begin(self._running.requests())
                has_begun = True
            if len(self._running) > 0 and not is_urgent and not self._admission.fits(request, memory):
                self.waiting_for = "memory"
                if self._displace(picked):
                    has_begun = False
                    continue
                break
            entry = self._book.start(request, self._now_s)
            self._put(entry, entry.num_tokens if whole_prompts else limit - self.num_tokens)
        return self.num_tokens - before

    def _compute(self, prompts: list[RunningRequest], limit: int) -> None:
        """The next chunks of these prompts, until the step holds ``limit`` rows."""
        for entry in prompts:
            if self.num_tokens < limit and self._is_running(entry):
                self._put(entry, limit - self.num_tokens)

    def _displace(self, head: Schedulable) -> bool:
        """Preempt whom the policy lets give way to ``head``. True if somebody did, which is progress: one fewer runs."""
        chosen = self._policy.displaced(head, self._running.requests())
        if chosen is None:
            return False
        victim = self._running.get(RequestId(str(chosen.request_id)))
        assert victim is not None, "the policy chose a victim that does not run"
        victim = self._running.cheapest_like(victim)  # a policy is fair to clients; which of theirs is ours to say
        self._gave_way.add(victim.request.request_id)
        self._unplan(victim.request)
        self._book.preempt(victim)
        return True

    def _put(self, entry: RunningRequest, max_tokens: int) -> None:
        sequence = entry.plan(max_tokens)
        self.planned[sequence.request_id] = (entry, sequence)
        self.num_tokens += len(sequence.token_ids)

    def _is_running(self, entry: RunningRequest) -> bool:
        return not self._has_made_room or entry in self._running

    def _make_room(self, entry: RunningRequest) -> bool:
        """Find the page for the next token. False if the request itself had to go."""
        while not self._running.grow(entry, entry.num_tokens):
            self._has_made_room = True
            running = self._running.requests()
            if len(running) == 1:
                self._end(entry.request, FinishReason.LENGTH, "the request has filled the memory")
                return False
            chosen = self._policy.victim(running)
            victim = self._running.get(running[-1].request_id if chosen is None else RequestId(str(chosen.request_id)))
            assert victim is not None, "the policy chose a victim that does not run"
            self._unplan(victim.request)
            self._book.preempt(victim)
            if victim is entry:
                return False
        return True

    def _unplan(self, request: Request) -> None:
        planned = self.planned.pop(request.request_id, None)
        if planned is not None:
            self.num_tokens -= planned[1].num_tokens

    def _end(self, request: Request, reason: FinishReason, message: str) -> None:
        self._book.end(request, reason, self._now_s)
        self.ended.append(EndedRequest(request, message))
