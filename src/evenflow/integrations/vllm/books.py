"""The walk that a policy is promised (fairness/policy.py), made from what vLLM's scheduler does with its waiting queue.

arrive -> [passed over]* -> admitted -> output* -> (requeue -> admitted -> output*)* -> end; or arrive -> end.

vLLM takes a request out of the queue both to start it and to set it aside, and says only afterwards which of the two
it was: by the request's status. So whatever was taken out is booked by ``taken`` at the next occasion, before the
policy picks again. At that time the length of the prefix that was found in the cache is known, too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping

from evenflow.fairness.books.cost import Service
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.policy import Policy
from evenflow.integrations.vllm.figures import Figures
from evenflow.integrations.vllm.life import Life
from evenflow.integrations.vllm.request_view import EngineRequest, RequestView, Statuses, client_of
from evenflow.integrations.vllm.scan import Scan

DECODED = Service(decode_tokens=1)
"""One output token: by far the most frequent service."""


class BooksFault(Exception):
    """The books and the scheduler tell different stories, or the policy does what this scheduler cannot follow."""


class Books:
    """Owns queues, policy and lives. Any method may raise whatever a faulty policy raises: the caller falls back."""

    def __init__(
        self,
        *,
        policy: Policy,
        queues: ClientQueues,
        statuses: Statuses,
        figures: Figures,
        clock: Callable[[], float],
        overtaking: float,
    ) -> None:
        self.policy = policy
        self._queues = queues
        self._statuses = statuses
        self._figures = figures
        self._clock = clock
        self._overtaking = overtaking
        self._lives: dict[Hashable, Life] = {}
        self._next_place = 0
        self._scan: Scan | None = None

    @property
    def lives(self) -> Mapping[Hashable, Life]:
        """By request id. Read only."""
        return self._lives

    def arrive(self, request: EngineRequest) -> None:
        """A new request waits, or a session's next turn."""
        self.end(request, is_complete=True)
        life = self._new_life(request)
        self._wait(life)

    def arrive_running(self, request: EngineRequest, kept_tokens: int) -> None:
        """It starts without having waited here; its first ``kept_tokens`` tokens are there and were paid for."""
        self.end(request, is_complete=True)
        life = self._new_life(request)
        self._wait(life)
        life.first_token = kept_tokens
        life.planned_tokens = max(0, request.num_prompt_tokens - kept_tokens)
        self._admit(life, Service(prefill_tokens=life.planned_tokens))

    def begin_scan(self) -> None:
        """A scheduling step begins."""
        self._scan = Scan(self.policy, self._queues, self._lives, self._clock(), self._overtaking)

    def next(self) -> EngineRequest | None:
        """Whose turn it is; None if nobody may start now."""
        life = self._open_scan().next()
        return None if life is None else life.request

    def taken(self, request: EngineRequest) -> None:
        """It was taken out of the queue, and its status says why by now: it has started, or it was passed over."""
        life = self._lives[request.request_id]
        if request.status in (self._statuses.running, self._statuses.loading):
            self._start(life)
        else:
            # Ready, with nothing of it in flight, and yet set aside: its adapter found no slot.
            is_for_slot = request.status in self._statuses.ready and not request.num_stale_output_tokens
            self._open_scan().passed_over(life, is_for_slot)

    def hold_back(self, request: EngineRequest) -> None:
        """Not before the next step: it has just been preempted."""
        self._open_scan().passed_over(self._lives[request.request_id], is_for_slot=False)

    def preempting(self, request: EngineRequest) -> None:
        """It is about to lose what was computed."""
        life = self._lives[request.request_id]
        life.computed_tokens = max(life.computed_tokens, request.num_computed_tokens)

    def requeue(self, request: EngineRequest) -> None:
        """It was preempted and is at the head of its client's queue."""
        life = self._lives[request.request_id]
        if life.is_waiting:
            return  # it was set aside and comes back to where it has been all the time
        life.is_waiting = True
        self._figures.preempted(life)
        self._queues.push_front(life.view)
        self.policy.requeued(life.view)
        self._changed()

    def output(self, request: EngineRequest, num_tokens: int) -> None:
        """It has produced so many tokens."""
        life = self._lives.get(request.request_id)
        if life is None or not life.has_account:
            raise BooksFault(f"output of request {request.request_id}, which the books have not seen start")
        if life.is_prompt_booked:
            # Once per running request and step: no more is done than must be.
            service = DECODED if num_tokens == 1 else Service(decode_tokens=num_tokens)
            for tally in life.tallies:
                tally.completion_tokens += num_tokens
        else:
            life.is_prompt_booked = True
            service = Service(life.planned_tokens, num_tokens, 0, life.cached_tokens)
            self._figures.answered(life, self._clock())
            self._figures.received(life, service)
        self.policy.charge(life.view, service)

    def end(self, request: EngineRequest, is_complete: bool) -> None:
        """It has ended, by itself or not, waiting or running. Nothing happens if it is not known."""
        life = self._lives.pop(request.request_id, None)
        if life is None:
            return
        view = life.view
        view.is_complete = is_complete and life.has_account
        is_last = self._queues.remove(view) if life.is_waiting else False
        if life.has_account:
            if not life.is_prompt_booked:
                service = Service(prefill_tokens=life.received_prompt_tokens(), cached_tokens=life.cached_tokens)
                self._figures.received(life, service)
                self.policy.charge(view, service)
            self.policy.settle(view)
        else:
            self.policy.cancelled(view)
        self._figures.ended(life)
        if is_last:
            self.policy.emptied(view.client_id)
        self._changed()

    def displaced(self, head: EngineRequest, running: Iterable[EngineRequest]) -> EngineRequest | None:
        """Which of the running requests the policy wants to give way to ``head``; None: nobody."""
        views = [life.view for request in running if (life := self._lives.get(request.request_id)) is not None]
        victim = self.policy.displaced(self._lives[head.request_id].view, views)
        return None if victim is None else self._lives[victim.request_id].request

    def check_integrity(self, waiting: Iterable[EngineRequest], running: Iterable[EngineRequest]) -> None:
        """Assert that lives, queues and policy agree with who waits and who runs. O(everything): for tests."""
        self._queues.check_integrity()
        self.policy.check_integrity(set(self._queues.clients))
        queued = {view.request_id for client in self._queues.clients for view in self._queues.waiting(client)}
        waiting_ids, running_ids = {r.request_id for r in waiting}, {r.request_id for r in running}
        assert queued == waiting_ids, "those that wait in the books are not those of the scheduler"
        assert {i for i, life in self._lives.items() if life.is_waiting} == waiting_ids
        assert {i for i, life in self._lives.items() if not life.is_waiting} == running_ids
        assert all(life.has_account for life in self._lives.values() if not life.is_waiting)
        self._figures.check_integrity(self._lives.values())

    def _new_life(self, request: EngineRequest) -> Life:
        view = RequestView(request, client_of(request), self._clock())
        self._next_place += 1
        return Life(request, view, self._next_place)

    def _wait(self, life: Life) -> None:
        view = life.view
        verdict = self.policy.arrive(view, view.arrival_s)
        if not verdict.is_accepted:
            raise BooksFault(f"the policy rejects requests, which it cannot do inside vLLM: {verdict.reason}")
        self._lives[view.request_id] = life
        self._figures.arrived(life)
        if self._queues.push(view):
            self.policy.backlogged(view.client_id)
        self._changed()

    def _start(self, life: Life) -> None:
        request = life.request
        present = request.num_computed_tokens
        if life.has_account:
            recomputed = max(0, life.computed_tokens - present)
            self._admit(life, Service(recomputed_tokens=recomputed))
            self._figures.received(life, Service(recomputed_tokens=recomputed))
            return
        life.first_token = life.cached_tokens = min(present, request.num_prompt_tokens)
        life.planned_tokens = request.num_prompt_tokens - life.cached_tokens
        self._admit(life, Service(prefill_tokens=life.planned_tokens, cached_tokens=life.cached_tokens))

    def _admit(self, life: Life, planned: Service) -> None:
        view = life.view
        is_last = self._queues.remove(view)
        life.is_waiting = False
        life.has_account = True
        self._figures.started(life)
        self.policy.admitted(view, planned)
        if is_last:
            self.policy.emptied(view.client_id)
        self._changed()

    def _open_scan(self) -> Scan:
        if self._scan is None:
            self.begin_scan()
        assert self._scan is not None
        return self._scan

    def _changed(self) -> None:
        if self._scan is not None:
            self._scan.changed()
