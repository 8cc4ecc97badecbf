"""The turns of a request's life, each with the calls that the policy is promised (the walk in fairness/policy.py).

enqueue -> start -> (preempt -> start)* -> end; or enqueue -> end. Decides nothing: the scheduler says when.
"""

from __future__ import annotations

from evenflow.fairness.books.cost import Service
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.policy import Policy, Verdict
from evenflow.serving.core.request import FinishReason, Request, RequestId, RequestState
from evenflow.serving.scheduler.admission import Admission
from evenflow.serving.scheduler.running import DECODED, RunningRequest, RunningSet
from evenflow.serving.scheduler.shedding import Shedding, has_never_run
from evenflow.serving.scheduler.snapshot import EndedRequest
from evenflow.serving.scheduler.tallies import Tallies, Tally


class RequestBook:
    """Owns every live request and moves it between queue and batch; keeps queues, policy, running set and tallies in step."""

    def __init__(
        self, policy: Policy, queues: ClientQueues, running: RunningSet, admission: Admission, shedding: Shedding
    ) -> None:
        self._policy = policy
        self._queues = queues
        self._running = running
        self._admission = admission
        self._shedding = shedding
        self._requests: dict[RequestId, Request] = {}
        self._computed_before: dict[RequestId, int] = {}
        self.clients = Tallies()
        self.adapters = Tallies()
        self.total = Tally()
        self.num_preemptions = 0
        self.num_shed = 0

    def get(self, request_id: RequestId) -> Request | None:
        """A request that waits or runs, or None."""
        return self._requests.get(request_id)

    def __len__(self) -> int:
        return len(self._requests)

    def enqueue(self, request: Request, now_s: float) -> Verdict:
        """Append a new request to its client's queue, unless the policy rejects it."""
        verdict = self._policy.arrive(request, now_s)
        if verdict.is_accepted:
            self._requests[request.request_id] = request
            request.state = RequestState.WAITING
            _move(self._tallies(request), +1, 0)
            self._shedding.enqueued(request, now_s)
            if self._queues.push(request):
                self._policy.backlogged(request.client_id)
        return verdict

    def start(self, request: Request, now_s: float) -> RunningRequest:
        """Take a request that fits out of its queue and into the batch."""
        tallies = self._tallies(request)
        entry = self._running.start(request, (self.total, *tallies), self._computed_before.get(request.request_id, 0))
        _move(tallies, -1, +1)
        is_first = request.admitted_s is None
        if is_first:
            request.admitted_s = now_s
            request.num_cached_tokens = entry.cached_tokens
            self._shedding.started(request, now_s)
        request.state = RequestState.RUNNING
        is_last = self._queues.remove(request)
        self._policy.admitted(
            request,
            Service(
                prefill_tokens=request.num_prompt_tokens - entry.cached_tokens if is_first else 0,
                recomputed_tokens=max(0, entry.computed_before - request.num_computed_tokens),
                cached_tokens=entry.cached_tokens,
                adapter_bytes=entry.adapter_bytes,
            ),
        )
        if is_last:
            self._policy.emptied(request.client_id)
        self._admission.admitted(request)
        return entry

    def serve(self, entry: RunningRequest, service: Service) -> None:
        """Charge and count what a running request has received in a step."""
        if service is DECODED:
            for tally in entry.tallies:
                tally.completion_tokens += 1
        else:
            request = entry.request
            request.num_recomputed_tokens += service.recomputed_tokens
            request.num_prefilled_tokens += service.prefill_tokens
            request.num_cache_hits += service.cached_tokens
            request.adapter_bytes += service.adapter_bytes
            for tally in entry.tallies:
                tally.prompt_tokens += service.prefill_tokens
                tally.completion_tokens += service.decode_tokens
                tally.recomputed_tokens += service.recomputed_tokens
                tally.cached_tokens += service.cached_tokens
        self._policy.charge(entry.request, service)

    def publish(self, entry: RunningRequest) -> None:
        """A prompt has been computed: others may use it from now on."""
        self._running.publish(entry)

    def shed(self, now_s: float) -> list[EndedRequest]:
        """End the waiting requests that would come too late."""
        ended = []
        for overdue in self._shedding.overdue(now_s):
            self.end(overdue.request, FinishReason.SHED, now_s)
            message = (
                f"the first token would come {overdue.predicted_ttft_s:.2f} s after the request and is wanted within "
                f"{overdue.slo_ttft_s:g} s"
            )
            ended.append(
                EndedRequest(
                    overdue.request,
                    message,
                    "SLOUnreachable",
                    predicted_ttft_s=overdue.predicted_ttft_s,
                    retry_after_s=overdue.retry_after_s,
                )
            )
        self.num_shed += len(ended)
        return ended

    def preempt(self, entry: RunningRequest) -> None:
        """Put a running request back at the head of its client's queue; its tokens are kept, its KV while there is room."""
        request = entry.request
        self._running.publish(entry)
        self._running.stop(entry)
        self._computed_before[request.request_id] = max(entry.computed_before, request.num_computed_tokens)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        request.state = RequestState.WAITING
        _move(self._tallies(request), +1, -1)
        self._queues.push_front(request)
        self._policy.requeued(request)

    def end(self, request: Request, reason: FinishReason, now_s: float) -> None:
        """End a request, waiting or running, and free what it held."""
        request.state = RequestState.FINISHED
        request.finish_reason = reason
        request.finished_s = now_s
        entry = self._running.get(request.request_id)
        if entry is not None:
            if reason is not FinishReason.ERROR:
                self._running.publish(entry)
            self._running.stop(entry)
            _move(self._tallies(request), 0, -1)
            self._policy.settle(request)
        else:
            _move(self._tallies(request), -1, 0)
            is_last = self._queues.remove(request)
            if request.admitted_s is None:
                self._shedding.cancelled(request, now_s)
                self._policy.cancelled(request)
            else:
                self._policy.settle(request)
            if is_last:
                self._policy.emptied(request.client_id)
        if request.admitted_s is not None:
            settled = self._policy.price(received(request))
            for tally in self._tallies(request):
                tally.settled_service += settled
        del self._requests[request.request_id]
        self._computed_before.pop(request.request_id, None)
        self._admission.finished(request)
        self.clients.leave(request.client_id)
        if request.adapter is not None:
            self.adapters.leave(request.adapter)

    def open_service(self) -> dict[str, float]:
        """By client: what its unfinished requests have received so far, as the policy prices it. O(requests)."""
        by_client: dict[str, float] = {}
        for request in self._requests.values():
            if request.admitted_s is not None:
                client = request.client_id
                by_client[client] = by_client.get(client, 0.0) + self._policy.price(received(request))
        return by_client

    def check_integrity(self) -> None:
        """Assert that queues, policy, running set and tallies tell the same story. O(everything)."""
        self._queues.check_integrity()
        self._running.check_integrity()
        self.clients.check_integrity()
        self.adapters.check_integrity()
        self._policy.check_integrity(set(self._queues.clients))
        self._shedding.check_integrity([request for request in self._requests.values() if has_never_run(request)])
        waiting = {r.request_id for client in self._queues.clients for r in self._queues.waiting(client)}
        running = {request.request_id for request in self._running.requests()}
        assert not waiting & running, "a request waits and runs"
        assert waiting | running == self._requests.keys(), "a request neither waits nor runs"
        assert self._computed_before.keys() <= self._requests.keys(), "a preempted request was not forgotten at its end"
        for request in self._requests.values():
            is_running = request.request_id in running
            assert request.state is (RequestState.RUNNING if is_running else RequestState.WAITING)
            assert is_running or request.num_computed_tokens == 0, f"{request.request_id} waits and has KV"
        for name_of, tallies in (("client_id", self.clients), ("adapter", self.adapters)):
            counts = {name: (tally.num_waiting, tally.num_running) for name, tally in tallies.by_name.items()}
            expected = dict.fromkeys(counts, (0, 0))
            for request_id, request in self._requests.items():
                name = getattr(request, name_of)
                if name is not None:
                    num_waiting, num_running = expected[name]
                    is_running = request_id in running
                    expected[name] = (num_waiting + (not is_running), num_running + is_running)
            assert counts == expected, f"tallies by {name_of} are wrong"

    def _tallies(self, request: Request) -> list[Tally]:
        tallies = [self.clients.enter(request.client_id)]
        if request.adapter is not None:
            tallies.append(self.adapters.enter(request.adapter))
        return tallies


def received(request: Request) -> Service:
    """Everything that ``request`` has received until now."""
    return Service(
        request.num_prefilled_tokens,
        request.num_output_tokens,
        request.num_recomputed_tokens,
        request.num_cache_hits,
        request.adapter_bytes,
    )


def _move(tallies: list[Tally], waiting: int, running: int) -> None:
    for tally in tallies:
        tally.num_waiting += waiting
        tally.num_running += running
