"""What runs next: add, plan, commit, abort. Decides, and never touches a tensor.

One step: ``plan`` says what to compute, an executor computes it, ``commit`` books what came out. Times are
arguments. Who is next is the policy's question, what a step may hold the batch rule's, whether a request may
start the admission's, which page belongs to whom the arena's.

Nothing waits for memory for ever. A request is refused at ``add`` if its prompt and one page for its output do
not fit an arena that holds nothing but its adapter. What runs takes free pages, then idle ones, then those
of a preempted request; two running requests cannot preempt each other in turns, because each turn needs
new tokens. The last one running that is still short is cut (finish reason LENGTH): its tokens and its adapter
have filled the arena, which cannot happen if max_model_len and the largest adapter fit it together and nothing
is pinned. A request at the head that does not fit although nothing runs is ended: cut, if it was preempted when it
had filled the arena, else (ERROR) pinned adapters are in its way. ``take_ended`` hands all these to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping

from evenflow.base.errors import InvalidRequest, PromptTooLong
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.policy import Policy, Verdict
from evenflow.serving.core.context_length import check_context_length
from evenflow.serving.core.plan import PlannedSequence, StepPlan, StepResult
from evenflow.serving.core.request import AdapterDigest, FinishReason, Request, RequestId
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.page_table import pages_for
from evenflow.serving.memory.prefix_cache import PrefixCache
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler.admission import Admission, PredictAndPreempt
from evenflow.serving.scheduler.batching import BatchRule, MixedBatchRule
from evenflow.serving.scheduler.limits import SchedulerLimits
from evenflow.serving.scheduler.plan_builder import PlanBuilder
from evenflow.serving.scheduler.prefetch import Prefetch, expected_next
from evenflow.serving.scheduler.request_book import RequestBook, received
from evenflow.serving.scheduler.running import RunningRequest, RunningSet
from evenflow.serving.scheduler.shedding import NoShedding, Shedding
from evenflow.serving.scheduler.snapshot import EndedRequest, SchedulerSnapshot
from evenflow.serving.scheduler.tallies import Tally


class Scheduler:
    """Continuous batching without phases. ``queues`` are those that ``policy`` looks at.

    The scheduler alone changes requests; policy, queues, arena and residency may be read by others, and
    residency told to pin and forget between steps.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        queues: ClientQueues,
        arena: Arena,
        residency: Residency,
        limits: SchedulerLimits,
        batch_rule: BatchRule | None = None,
        admission: Admission | None = None,
        prefix_cache: PrefixCache | None = None,
        shedding: Shedding | None = None,
        prefetch: Prefetch | None = None,
    ) -> None:
        self.policy = policy
        self.limits = limits
        self._queues = queues
        self._arena = arena
        self._residency = residency
        self._batch_rule = batch_rule or MixedBatchRule()
        self._admission = admission or PredictAndPreempt(window=limits.window)
        self._running = RunningSet(arena, residency, limits.page_tokens, prefix_cache, limits.window)
        self._prefix_cache = prefix_cache
        self._shedding = shedding or NoShedding()
        self._book = RequestBook(policy, queues, self._running, self._admission, self._shedding)
        self._prefetch = prefetch
        self._in_flight: list[tuple[RunningRequest, PlannedSequence]] | None = None
        self._ended: list[EndedRequest] = []
        self._num_steps = 0
        self._waiting_for = ""

    def add(self, request: Request, now_s: float) -> Verdict:
        """Queue a request, unless the policy rejects it: then nothing has happened and the verdict says why.

        Raises InvalidRequest or PromptTooLong if it can never be served, AdapterNotFound for an unknown adapter.
        """
        self._check(request)
        return self._book.enqueue(request, now_s)

    def abort(self, request_id: RequestId, now_s: float) -> Request | None:
        """End a request wherever it is, also between ``plan`` and ``commit``. None if there is no such request."""
        request = self._book.get(request_id)
        if request is not None:
            self._book.end(request, FinishReason.ABORT, now_s)
        return request

    def plan(self, now_s: float) -> StepPlan | None:
        """What to compute next; None if nothing waits or runs, or the policy lets nobody start now.

        O(running), and O(log clients) for each request that starts. Ask ``take_ended`` afterwards.
        """
        assert self._in_flight is None, "the last step was not committed"
        builder = self._fill(now_s)
        while builder.ended and not builder.planned:
            # What held the memory has just been cut: there is room for others in this very step.
            builder = self._fill(now_s)
        if not builder.planned:
            return None
        if self._prefetch is not None:
            self._plan_prefetch(self._prefetch)
        self._num_steps += 1
        self._in_flight = list(builder.planned.values())
        return StepPlan(self._num_steps, tuple([sequence for _, sequence in self._in_flight]), self._residency.take_loads())

    def commit(self, result: StepResult, finished: Mapping[RequestId, FinishReason], now_s: float) -> None:
        """Book the tokens of the step that was planned last, charge for them, and end what has ``finished``.

        A token with an error is not booked; it ends its request, and ``take_ended`` has it, as it has those whose
        adapter could not be loaded. Requests that were aborted after ``plan`` are passed over.
        """
        assert self._in_flight is not None, "no step was planned"
        assert result.step == self._num_steps, f"step {result.step} was not the last one planned"
        in_flight, self._in_flight = self._in_flight, None
        if result.failed_loads:
            self._drop_failed(result.failed_loads, now_s)
        tokens, running, serve = result.tokens, self._running, self._book.serve
        for entry, sequence in in_flight:
            request = entry.request
            if running.get(request.request_id) is not entry:
                continue
            request.num_computed_tokens += len(sequence.token_ids)
            has_token, error, error_type = False, None, ""
            if sequence.sample is not None:
                token = tokens[request.request_id]
                error, error_type = token.error, token.error_type
                if error is None:
                    has_token = True
                    request.output_token_ids.append(token.token_id)
                    entry.num_tokens += 1
                    if request.first_token_s is None:
                        request.first_token_s = now_s
                        self._shedding.answered(request, now_s)
            serve(entry, entry.received(sequence, has_token))
            if has_token and len(sequence.token_ids) > 1:
                self._book.publish(entry)
            running.drop_unseen(entry)
            if error is not None:
                if error_type == "EvenFlowError" and request.adapter is not None:
                    error_type = "AdapterError"  # what its adapter computed is no distribution: its own fault
                self._ended.append(EndedRequest(request, error, error_type))
                self._book.end(request, FinishReason.ERROR, now_s)
        for request_id, reason in finished.items():
            request_or_none = self._book.get(request_id)
            if request_or_none is not None:
                self._book.end(request_or_none, reason, now_s)

    def take_ended(self) -> list[EndedRequest]:
        """The requests that the scheduler itself has ended since the last call (see the module's text)."""
        ended, self._ended = self._ended, []
        return ended

    def get(self, request_id: RequestId) -> Request | None:
        """A request that waits or runs, or None."""
        return self._book.get(request_id)

    @property
    def residency(self) -> Residency:
        """Which adapters are in the arena: to be read."""
        return self._residency

    @property
    def has_work(self) -> bool:
        """True if a request waits or runs."""
        return len(self._book) > 0

    @property
    def caches_prefixes(self) -> bool:
        """True if there is a prefix cache."""
        return self._prefix_cache is not None

    @property
    def num_waiting(self) -> int:
        """Requests that wait, preempted ones included."""
        return self._queues.num_waiting()

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return len(self._running)

    @property
    def clients(self) -> Mapping[str, Tally]:
        """Tallies by client; those of clients long idle are dropped."""
        return self._book.clients.by_name

    @property
    def adapters(self) -> Mapping[str, Tally]:
        """Tallies by adapter digest; those of adapters long idle are dropped."""
        return self._book.adapters.by_name

    def service_by_client(self) -> dict[str, float]:
        """What each client that is remembered was charged, in the policy's unit. O(clients + requests)."""
        open_service = self._book.open_service()
        return {name: tally.settled_service + open_service.get(name, 0.0) for name, tally in self.clients.items()}

    def service_of(self, request: Request) -> float:
        """The price of what ``request`` has received, in the policy's unit; after its end: what it was charged."""
        return self.policy.price(received(request))

    def num_in_flight(self, adapter: AdapterDigest) -> int:
        """Requests, waiting or running, that use this adapter."""
        tally = self.adapters.get(adapter)
        return 0 if tally is None else tally.num_waiting + tally.num_running

    def snapshot(self) -> SchedulerSnapshot:
        """The numbers of this moment. O(1)."""
        arena, residency, total, cache = self._arena, self._residency, self._book.total, self._prefix_cache
        num_cache_pages = arena.num_owned("cache")
        num_idle_cache_pages = 0 if cache is None else cache.num_idle_pages
        return SchedulerSnapshot(
            num_waiting=self.num_waiting,
            num_running=self.num_running,
            waiting_for=self._waiting_for if self.num_waiting else "",
            num_pages=arena.num_pages,
            num_free_pages=arena.num_free,
            num_kv_pages=arena.num_owned("request") + num_cache_pages - num_idle_cache_pages,
            num_idle_cache_pages=num_idle_cache_pages,
            num_adapter_pages=arena.num_owned("adapter"),
            num_idle_adapter_pages=residency.num_idle_pages,
            page_tokens=self.limits.page_tokens,
            num_resident_adapters=residency.num_resident,
            num_adapter_loads=residency.num_loads,
            num_adapter_evictions=residency.num_evictions,
            num_adapter_prefetches=residency.num_prefetches,
            num_wasted_prefetches=residency.num_wasted_prefetches,
            num_failed_adapter_loads=residency.num_failed_loads,
            loaded_adapter_bytes=residency.loaded_bytes,
            num_preemptions=self._book.num_preemptions,
            num_shed=self._book.num_shed,
            num_steps=self._num_steps,
            prompt_tokens=total.prompt_tokens,
            completion_tokens=total.completion_tokens,
            recomputed_tokens=total.recomputed_tokens,
            cached_tokens=total.cached_tokens,
        )

    def check_integrity(self) -> None:
        """Assert that every book agrees with every other. O(everything): for tests."""
        self._book.check_integrity()
        assert len(self._running) <= self.limits.max_num_seqs
        for entry in self._running:
            assert entry.num_tokens <= self.limits.max_model_len, f"{entry.request.request_id} was not ended in time"

    def _fill(self, now_s: float) -> PlanBuilder:
        builder = PlanBuilder(
            now_s=now_s,
            limits=self.limits,
            policy=self.policy,
            admission=self._admission,
            residency=self._residency,
            running=self._running,
            book=self._book,
        )
        self._batch_rule.fill(builder)
        self._waiting_for = builder.waiting_for
        self._ended += builder.ended
        return builder

    def _plan_prefetch(self, prefetch: Prefetch) -> None:
        """Have adapters of waiting requests loaded beside the step that has been filled."""
        if not self.num_waiting and not self._residency.num_prefetched_pages:
            return
        adapters = self._book.adapters.by_name

        def is_wanted(digest: AdapterDigest) -> bool:
            tally = adapters.get(digest)
            return tally is not None and tally.num_waiting > 0

        upcoming = expected_next(self.policy, self._queues, self._book.get, prefetch.lookahead) if self.num_waiting else []
        prefetch.plan(upcoming, len(self._running), self._residency, is_wanted)

    def _drop_failed(self, failed_loads: Mapping[AdapterDigest, str], now_s: float) -> None:
        """End whoever runs with an adapter that could not be loaded, and take it out of the arena."""
        for request in self._running.requests():
            fault = None if request.adapter is None else failed_loads.get(request.adapter)
            if fault is not None:
                self._ended.append(EndedRequest(request, fault, "AdapterDamaged"))
                self._book.end(request, FinishReason.ERROR, now_s)
        for digest in failed_loads:
            self._residency.discard(digest)

    def _check(self, request: Request) -> None:
        limits, num_prompt = self.limits, request.num_prompt_tokens
        if self._book.get(request.request_id) is not None:
            raise InvalidRequest(f"request id {request.request_id!r} is in use", "request_id")
        if num_prompt == 0:
            raise InvalidRequest("the prompt has no tokens", "prompt")
        if request.slo_ttft_s is not None and not self._shedding.keeps_slos:
            raise InvalidRequest("slo_ttft is given, and this server gives nothing up: it runs with --shed none", "slo_ttft")
        if request.max_output_tokens < 1:
            raise InvalidRequest(f"max_tokens is {request.max_output_tokens}; allowed: 1 or more", "max_tokens")
        check_context_length(num_prompt, request.max_output_tokens, limits.max_model_len, "prompt")
        adapter_pages = 0 if request.adapter is None else self._residency.record(request.adapter).num_pages
        prompt_pages = pages_for(num_prompt, limits.page_tokens)
        if not self._arena.could_hold(request=prompt_pages + 1, adapter=adapter_pages):
            raise PromptTooLong(
                f"the prompt takes {prompt_pages} pages and its adapter {adapter_pages}; with one more for the output "
                f"they must fit an arena of {self._arena.num_pages} pages",
                "prompt",
            )
