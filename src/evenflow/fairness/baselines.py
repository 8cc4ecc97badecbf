"""Policies to compare with: what servers do that know no clients."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable

from evenflow.fairness.defaults import PolicyDefaults
from evenflow.fairness.policy import ACCEPT, Schedulable, Verdict
from evenflow.fairness.registry import PolicySettings, refuse_argument


class FCFS(PolicyDefaults):
    """First come, first served, whoever asks. A preempted request keeps its place by arrival."""

    def __init__(self) -> None:
        self._order: list[tuple[int, Hashable]] = []
        self._place: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, Schedulable] = {}
        self._next_place = 0

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> FCFS:
        """Takes no argument."""
        refuse_argument("fcfs", argument)
        return cls()

    def arrive(self, request: Schedulable, now_s: float) -> Verdict:
        """Accept, and note the place in line."""
        self._next_place += 1
        self._place[request.request_id] = self._next_place
        self._wait(request)
        return ACCEPT

    def pick(self, now_s: float) -> Schedulable | None:
        """The waiting request that arrived first."""
        while self._order:
            place, request_id = self._order[0]
            request = self._waiting.get(request_id)
            if request is not None and self._place[request_id] == place:
                return request
            heapq.heappop(self._order)
        return None

    def admitted(self, request: Schedulable, planned: object) -> None:
        """It waits no more, but keeps its place in case it is preempted."""
        del self._waiting[request.request_id]

    def requeued(self, request: Schedulable) -> None:
        """It waits again, at its old place."""
        self._wait(request)

    def settle(self, request: Schedulable) -> None:
        """It has ended, running or waiting after a preemption."""
        self._waiting.pop(request.request_id, None)
        del self._place[request.request_id]

    def cancelled(self, request: Schedulable) -> None:
        """It left the line."""
        del self._waiting[request.request_id]
        del self._place[request.request_id]

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Assert that the clients of the requests in line are those that wait."""
        assert {request.client_id for request in self._waiting.values()} == set(waiting_clients)
        assert self._waiting.keys() <= self._place.keys()

    def _wait(self, request: Schedulable) -> None:
        self._waiting[request.request_id] = request
        heapq.heappush(self._order, (self._place[request.request_id], request.request_id))
