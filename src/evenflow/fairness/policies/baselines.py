"""Policies to compare with: what servers do that know no clients."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Collection, Hashable, Sequence
from itertools import islice

from evenflow.base.errors import RegistryError
from evenflow.base.heaps import ascending
from evenflow.fairness.books.level import HalfLiftedLevel, RoundLevel, UnliftedLevel
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.defaults import PolicyDefaults
from evenflow.fairness.policies.vtc import VTC
from evenflow.fairness.policy import ACCEPT, Verdict
from evenflow.fairness.registry import PolicySettings, refuse_argument
from evenflow.fairness.schedulable import Schedulable


class FCFS(PolicyDefaults):
    """First come, first served, whoever asks: no bound between clients. A preempted request keeps its place by arrival."""

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

    def upcoming(self, at_most: int) -> Sequence[Schedulable]:
        """Those that arrived first."""
        found: dict[Hashable, Schedulable] = {}  # a request that was preempted may be in the heap twice
        for place, request_id in ascending(self._order):
            request = self._waiting.get(request_id)
            if request is not None and self._place[request_id] == place:
                found[request_id] = request
                if len(found) == at_most:
                    break
        return list(found.values())

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


class RPM(FCFS):
    """First come, first served, with at most ``limit`` accepted requests per client in any 60 s; the rest is rejected.

    Requests per minute, what most services do; no bound between clients in tokens.
    A rejected request does not count. Exact, O(1) amortised, and a
    client that has been away for a minute takes no memory.
    """

    window_s = 60.0

    def __init__(self, limit: int = 20) -> None:
        super().__init__()
        self._limit = limit
        self._accepted: deque[tuple[float, str]] = deque()
        self._times_by_client: dict[str, deque[float]] = {}

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> RPM:
        """``rpm[:N]``, 20 without an argument."""
        return cls(_whole("rpm", argument, 20, "requests per minute"))

    def arrive(self, request: Schedulable, now_s: float) -> Verdict:
        """Accept, or reject with the time until the oldest request of the window leaves it."""
        while self._accepted and now_s - self._accepted[0][0] > self.window_s:
            _, client_id = self._accepted.popleft()
            times = self._times_by_client[client_id]
            times.popleft()
            if not times:
                del self._times_by_client[client_id]
        times = self._times_by_client.get(request.client_id, deque())
        if len(times) >= self._limit:
            wait_s = times[0] + self.window_s - now_s
            return Verdict(False, f"client {request.client_id!r} is at its limit of {self._limit} requests per minute", wait_s)
        times.append(now_s)
        self._times_by_client[request.client_id] = times
        self._accepted.append((now_s, request.client_id))
        return super().arrive(request, now_s)

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Assert that both views of the window agree and nobody is over the limit."""
        super().check_integrity(waiting_clients)
        assert sum(map(len, self._times_by_client.values())) == len(self._accepted)
        assert all(0 < len(times) <= self._limit for times in self._times_by_client.values())


class RoundRobin(PolicyDefaults):
    """One request of each waiting client in turn, whatever it costs: no bound in tokens, those with long requests win."""

    def __init__(self, queues: ClientQueues) -> None:
        self._queues = queues
        self._ring: OrderedDict[str, None] = OrderedDict()

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> RoundRobin:
        """Takes no argument."""
        refuse_argument("round-robin", argument)
        return cls(settings.queues)

    def backlogged(self, client_id: str) -> None:
        """Last in the ring."""
        self._ring[client_id] = None

    def emptied(self, client_id: str) -> None:
        """Out of the ring."""
        del self._ring[client_id]

    def pick(self, now_s: float) -> Schedulable | None:
        """The oldest request of the client at the head of the ring."""
        client_id = next(iter(self._ring), None)
        return None if client_id is None else self._queues.head(client_id)

    def upcoming(self, at_most: int) -> Sequence[Schedulable]:
        """Of each client in the ring's order, one request, then a second one, ..."""
        return self._queues.interleaved(list(islice(self._ring, at_most)), at_most)

    def admitted(self, request: Schedulable, planned: object) -> None:
        """Its client has had its turn."""
        self._ring.move_to_end(request.client_id)

    def requeued(self, request: Schedulable) -> None:
        """Its client gets the turn back."""
        self._ring[request.client_id] = None
        self._ring.move_to_end(request.client_id, last=False)

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Assert that the ring holds the waiting clients."""
        assert self._ring.keys() == set(waiting_clients)


class LCF(VTC):
    """Least counter first: VTC without the lift. Who was idle is served alone until it has caught up (VTC paper, section 5.1).

    No bound: a client may be served alone for as long as it was away. It remembers every client it has ever seen.
    """

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> LCF:
        """Takes no argument."""
        refuse_argument("lcf", argument)
        return cls(settings.queues, settings.weights, settings.cost, UnliftedLevel())


class HalfLiftedVTC(VTC):
    """VTC with the lift of the authors' published code: none when nothing else waits. It has no bound."""

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> HalfLiftedVTC:
        """Takes no argument. Refused outside a simulation: its bound does not hold."""
        refuse_argument("vtc-half-lift", argument)
        if not settings.is_simulation:
            raise RegistryError("vtc-half-lift starves whoever stays; only a simulation may run it (use vtc)")
        return cls(settings.queues, settings.weights, settings.cost, HalfLiftedLevel())


class DRR(VTC):
    """Deficit round robin for unknown lengths: a client starts requests while its deficit is positive, and what they turn
    out to cost becomes debt that its next rounds pay (VTC paper, appendix). The debt outlives idleness, a surplus does not.
    The bound is VTC's with U + QUANTUM in the place of U.
    """

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> DRR:
        """``drr[:QUANTUM]``, 500 service units without an argument (a twentieth of the paper's pool)."""
        quantum = _whole("drr", argument, 500, "units of service per round")
        return cls(settings.queues, settings.weights, settings.cost, RoundLevel(quantum))


def _whole(name: str, argument: str | None, default: int, what: str) -> int:
    """A whole number of at least 1. Raises RegistryError for anything else."""
    try:
        value = int(argument) if argument is not None else default
    except ValueError:
        value = 0
    if value < 1:
        raise RegistryError(f"{name} takes a whole number of {what} from 1, got {argument!r}")
    return value
