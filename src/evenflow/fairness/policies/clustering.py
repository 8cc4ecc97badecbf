"""Adapter clustering in front of any policy: few distinct adapters in the batch, without starving the others.

S-LoRA's clustering (its section 4.2): once the batch holds d distinct adapters, waiting requests whose adapter is in use go
first; when there is none, the next in line starts, so d is a soft limit and no place stays empty. The paper's own starves
whoever uses a rare adapter and knows no clients. Here the line is another policy's, and it is passed over only

* while whose turn it is has been passed over for less than ``age_s`` seconds of its life, all in all: then it starts next;
* by requests whose client is ahead of the client that is due by at most ``deficit`` service (the bounded deficit of
  adapters.py): counters of two clients under VTC that both wait then stay within U + deficit and their services within
  2 (U + deficit). The proof of VTC's lemma 4.3 holds with an admitted counter of at most the least + deficit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from itertools import islice

from evenflow.base.errors import RegistryError
from evenflow.fairness.books.cost import Service
from evenflow.fairness.books.in_use import AdaptersInUse
from evenflow.fairness.policies.passthrough import PassThrough
from evenflow.fairness.policy import Policy, Verdict
from evenflow.fairness.schedulable import Schedulable

DEFAULT_AGE_S = 2.0
DEFAULT_DEFICIT = 4000.0


class Clustered(PassThrough):
    """``policy`` with a soft limit of ``most_adapters`` distinct adapters. Requests to the base model use none."""

    def __init__(
        self,
        policy: Policy,
        most_adapters: int,
        *,
        age_s: float = DEFAULT_AGE_S,
        deficit: float = DEFAULT_DEFICIT,
        candidates_per_adapter: int = 4,
    ) -> None:
        super().__init__(policy)
        self._most_adapters = most_adapters
        self._age_s = age_s
        self._deficit = deficit
        self._candidates_per_adapter = candidates_per_adapter
        self._in_use = AdaptersInUse()
        self._waiting: dict[str | None, OrderedDict[Hashable, Schedulable]] = {}
        self._passed_over_s = 0.0
        """Time in which the line was passed over, since the start."""
        self._came: dict[Hashable, tuple[int, float]] = {}
        """Of each waiting request: its place in order of arrival, and the time passed over when it came."""
        self._next_place = 0
        self._last_pick_s = 0.0
        self._is_passing = False

    @classmethod
    def around(cls, policy: Policy, argument: str | None) -> Clustered:
        """``cluster:D[:AGE_S[:DEFICIT]]+POLICY``. Raises RegistryError if the numbers make no sense."""
        parts = (argument or "").split(":")
        try:
            most_adapters = int(parts[0])
            age_s, deficit = (
                float(parts[i]) if len(parts) > i else default for i, default in ((1, DEFAULT_AGE_S), (2, DEFAULT_DEFICIT))
            )
        except ValueError:
            most_adapters, age_s, deficit = 0, 0.0, 0.0
        if most_adapters < 1 or not age_s >= 0 or not deficit >= 0 or len(parts) > 3:
            raise RegistryError(
                "cluster takes D[:AGE_S[:DEFICIT]]: distinct adapters from 1, seconds from 0 (inf: no bound), service from 0; "
                f"got {argument!r}"
            )
        return cls(policy, most_adapters, age_s=age_s, deficit=deficit)

    def arrive(self, request: Schedulable, now_s: float) -> Verdict:
        """Note it among those that wait for its adapter, if the policy accepts it."""
        verdict = super().arrive(request, now_s)
        if verdict.is_accepted:
            self._wait(request)
        return verdict

    def pick(self, now_s: float) -> Schedulable | None:
        """Whose turn it is; or, within the bounds, the oldest request whose adapter is in use."""
        if self._is_passing:
            self._passed_over_s += max(now_s - self._last_pick_s, 0.0)
        self._last_pick_s = now_s
        head = super().pick(now_s)
        chosen = None
        if head is not None and self._may_be_passed_over(head):
            chosen = self._overtaking(head)
        self._is_passing = chosen is not None
        return chosen or head

    def admitted(self, request: Schedulable, planned: Service) -> None:
        """Its adapter is in use."""
        self._leave(request)
        self._in_use.start(request)
        super().admitted(request, planned)

    def requeued(self, request: Schedulable) -> None:
        """It waits again, before the others of its adapter."""
        self._in_use.stop(request)
        self._wait(request)
        self._waiting[request.adapter].move_to_end(request.request_id, last=False)
        super().requeued(request)

    def settle(self, request: Schedulable) -> None:
        """It has ended, running or waiting after a preemption."""
        self._in_use.stop(request)
        self._leave(request)
        super().settle(request)

    def cancelled(self, request: Schedulable) -> None:
        """It waits no more."""
        self._leave(request)
        super().cancelled(request)

    def displaced(self, head: Schedulable, running: Sequence[Schedulable]) -> Schedulable | None:
        """Nobody gives way to a request out of its turn."""
        return None if self._is_passing else super().displaced(head, running)

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Assert the index of those that wait, and the policy's own books."""
        super().check_integrity(waiting_clients)
        self._in_use.check_integrity()
        assert all(self._waiting.values()), "an empty FIFO was kept"
        waiting = {request_id: request for fifo in self._waiting.values() for request_id, request in fifo.items()}
        assert {request.client_id for request in waiting.values()} == set(waiting_clients)
        assert waiting.keys() == self._came.keys()

    def _may_be_passed_over(self, head: Schedulable) -> bool:
        is_new_adapter = head.adapter is not None and head.adapter not in self._in_use
        if not is_new_adapter or len(self._in_use) < self._most_adapters:
            return False
        return self._passed_over_s - self._came[head.request_id][1] < self._age_s

    def _overtaking(self, head: Schedulable) -> Schedulable | None:
        """The oldest of the waiting requests to adapters in use, and to the base model, that may overtake ``head``."""
        best, best_place = None, self._next_place
        for adapter in (None, *self._in_use):
            for request in islice(self._waiting.get(adapter, {}).values(), self._candidates_per_adapter):
                place = self._came[request.request_id][0]
                if place >= best_place:
                    break
                if self._policy.ahead(request, head) <= self._deficit:
                    best, best_place = request, place
                    break
        return best

    def _wait(self, request: Schedulable) -> None:
        self._waiting.setdefault(request.adapter, OrderedDict())[request.request_id] = request
        self._came[request.request_id] = (self._next_place, self._passed_over_s)
        self._next_place += 1

    def _leave(self, request: Schedulable) -> None:
        fifo = self._waiting.get(request.adapter)
        if fifo is not None and fifo.pop(request.request_id, None) is not None:
            del self._came[request.request_id]
            if not fifo:
                del self._waiting[request.adapter]
