"""Newest first: always, or only while requests come faster than they are taken (S-LoRA, section 4.3 and its early abort).

Under overload whoever comes first has waited longest and is served too late to be glad of it; the newest can still be
served in time. Those passed over are to be given up: see shedding in the scheduler.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator, Sequence
from itertools import chain, islice

from evenflow.fairness.defaults import PolicyDefaults
from evenflow.fairness.policy import ACCEPT, Verdict
from evenflow.fairness.registry import PolicySettings, refuse_argument
from evenflow.fairness.schedulable import Schedulable


class LCFS(PolicyDefaults):
    """Last come, first served, whoever asks: no bound between clients. A preempted request goes before all: it has begun."""

    name = "lcfs"

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, Schedulable] = OrderedDict()
        self._preempted: OrderedDict[Hashable, Schedulable] = OrderedDict()

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> LCFS:
        """Takes no argument."""
        refuse_argument(cls.name, argument)
        return cls()

    def arrive(self, request: Schedulable, now_s: float) -> Verdict:
        """Accept: it is the newest."""
        self._waiting[request.request_id] = request
        return ACCEPT

    def pick(self, now_s: float) -> Schedulable | None:
        """A preempted request, else the newest."""
        return next(iter(self._preempted.values()), None) or next(reversed(self._waiting.values()), None)

    def upcoming(self, at_most: int) -> Sequence[Schedulable]:
        """As pick goes on, while nobody else comes."""
        return list(islice(chain(self._preempted.values(), self._in_line()), at_most))

    def admitted(self, request: Schedulable, planned: object) -> None:
        """It waits no more."""
        self._forget(request)

    def requeued(self, request: Schedulable) -> None:
        """It has begun, and goes first."""
        self._preempted[request.request_id] = request

    def settle(self, request: Schedulable) -> None:
        """It has ended, running or waiting after a preemption."""
        self._forget(request)

    def cancelled(self, request: Schedulable) -> None:
        """It waits no more."""
        self._forget(request)

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Assert that the clients of those that wait here are those that wait."""
        assert not self._waiting.keys() & self._preempted.keys()
        everybody = [*self._waiting.values(), *self._preempted.values()]
        assert {request.client_id for request in everybody} == set(waiting_clients)

    def _in_line(self) -> Iterator[Schedulable]:
        return reversed(self._waiting.values())

    def _forget(self, request: Schedulable) -> None:
        self._waiting.pop(request.request_id, None)
        self._preempted.pop(request.request_id, None)


class LCFSUnderOverload(LCFS):
    """First come, first served, until more come between two batches than a batch takes; then newest first.

    No bound between clients.

    The order of S-LoRA's early abort (with ``--shed paper`` the whole rule). At each attempt to admit, with w waiting
    (those about to be given up included), w' after the last successful attempt and k requests that it took:
    arrivals r <- int(0.7 (w - w') + 0.3 r), batch b <- max(int(0.7 k + 0.3 b), 1); newest first while r >= b.
    """

    name = "lcfs-overload"

    def __init__(self) -> None:
        super().__init__()
        self._arrivals = 1
        self._batch = 1
        self._batch_before = 1
        self._num_left_waiting = 0
        self._num_taken = 0
        self._num_cancelled = 0
        self._attempt_s: float | None = None

    def pick(self, now_s: float) -> Schedulable | None:
        """A preempted request, else the oldest or, under overload, the newest. A new time is a new attempt."""
        if now_s != self._attempt_s:
            self._attempt_s = now_s
            gained = len(self._waiting) + self._num_cancelled - self._num_left_waiting
            self._arrivals = int(0.7 * gained + 0.3 * self._arrivals)
            self._batch_before = self._batch
            self._num_taken = self._num_cancelled = 0
        return next(iter(self._preempted.values()), None) or next(self._in_line(), None)

    def admitted(self, request: Schedulable, planned: object) -> None:
        """Count what the attempt takes."""
        is_new = request.request_id in self._waiting
        super().admitted(request, planned)
        if is_new:
            self._num_taken += 1
            self._num_left_waiting = len(self._waiting)
            self._batch = max(int(0.7 * self._num_taken + 0.3 * self._batch_before), 1)

    def cancelled(self, request: Schedulable) -> None:
        """It waits no more; until the next attempt it counts as having come."""
        super().cancelled(request)
        self._num_cancelled += 1

    def _in_line(self) -> Iterator[Schedulable]:
        return super()._in_line() if self._arrivals >= self._batch_before else iter(self._waiting.values())
