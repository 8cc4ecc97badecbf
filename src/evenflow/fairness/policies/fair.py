"""The default policy: predicted VTC in which a quiet client never waits for a slot that another could spare.

VTC decides who starts next, not when: with every slot taken by one client's long answers even the client that is due
waits until one of them ends. Here two kinds of requests may stop others:

* an **urgent** one: it has produced nothing, its client runs nothing, and the client's counter is no higher than a
  newcomer's would be. It is due before those that are not urgent, and if it does not fit a request of the
  richest client gives way that runs several, or that has received more than the urgent one's client was charged. A
  request is urgent until its first token only, so no more are stopped for it than its own start takes;
* one that collects a **debt**: its client is due and LEAD behind what another has received.

The only request of a client is stopped by neither before its first token. What was computed stays in the prefix cache
while there is room; what has to be computed again is charged to nobody.

What it promises, if a step holds more rows than requests (max_batch_tokens above max_num_seqs), with N slots:

* an urgent request starts with the next step that is planned, unless all N slots are held by requests that are their
  clients' only ones and have not had more than its own client, or not yet a first token. When fewer than N clients are
  at work this does not happen. Its prompt shares at least half of the rows that decoding leaves with the other urgent
  prompts, and with nobody else;
* the services of clients that wait stay within the bound of predicted VTC, U + B, and also within LEAD + B + a step and
  a prompt, which does not depend on the memory.

Both hold as far as memory can be taken back by stopping requests. Nothing is promised to a client that has had more than
its share: it is not due.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence

from evenflow.base.errors import RegistryError
from evenflow.fairness.books.cost import CostFunction, Service
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.books.weights import Weights
from evenflow.fairness.policies.prediction import LengthPredictor, PredictedVTC
from evenflow.fairness.registry import PolicySettings
from evenflow.fairness.schedulable import Schedulable

DEFAULT_LEAD = 2000.0
_MOST_CANDIDATES = 16
"""Clients at a newcomer's level that are looked at for an urgent request."""


class FairVTC(PredictedVTC):
    """``fair[:LEAD]``: predicted VTC with a bounded wait for a client's first token. Its bounds are those of the module."""

    def __init__(
        self,
        queues: ClientQueues,
        weights: Weights | None = None,
        cost: CostFunction | None = None,
        predictor: LengthPredictor | None = None,
        lead: float = DEFAULT_LEAD,
    ) -> None:
        """``lead``: service per weight that a client may be behind before others' requests are stopped for it."""
        super().__init__(queues, weights, cost, predictor)
        self._lead = lead
        self._num_running: Counter[str] = Counter()
        """By client; only those that run something."""
        self._stopped: set[Hashable] = set()
        """Requests that were preempted and wait."""

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> FairVTC:
        """``fair[:LEAD]``, 2000 units of service without an argument; ``inf``: requests are stopped for first tokens only."""
        try:
            lead = float(argument) if argument is not None else DEFAULT_LEAD
        except ValueError:
            lead = -1.0
        if not lead > 0:
            raise RegistryError(f"fair takes a lead above 0, in units of service, or inf; got {argument!r}")
        return cls(settings.queues, settings.weights, settings.cost, lead=lead)

    def pick(self, now_s: float) -> Schedulable | None:
        """The urgent request of the client with the least counter; without one the oldest of the client that is due."""
        for client_id in self._level.at_level(_MOST_CANDIDATES):
            head = self._queues.head(client_id)
            assert head is not None
            if head.num_output_tokens == 0 and client_id not in self._num_running:
                return head
        return super().pick(now_s)

    def upcoming(self, at_most: int) -> Sequence[Schedulable]:
        """The pick, and then as for VTC."""
        due = self.pick(0.0)
        return [] if due is None else [due, *(r for r in super().upcoming(at_most) if r is not due)][:at_most]

    def admitted(self, request: Schedulable, planned: Service) -> None:
        """Charge it, and count it as running."""
        self._num_running[request.client_id] += 1
        self._stopped.discard(request.request_id)
        super().admitted(request, planned)

    def is_urgent(self, request: Schedulable, running: Sequence[Schedulable]) -> bool:
        """It has produced nothing, its client runs nothing but it and, if it waits, is at a newcomer's level."""
        runs = request.request_id in self._accounts and request.request_id not in self._stopped
        if request.num_output_tokens or self._num_running[request.client_id] != runs:
            return False
        # Without the level a request could stop one that is due before it, which would come straight back.
        return runs or self._level.is_at_level(request.client_id)

    def displaced(self, head: Schedulable, running: Sequence[Schedulable]) -> Schedulable | None:
        """For an urgent request or a debt: a request of the richest client that may be stopped for it.

        Which of that client's requests it is makes no difference to what is promised; the scheduler takes the cheapest.
        """
        several, lead = self._num_running, self._level.lead
        stoppable = [r for r in running if several[r.client_id] > 1 or r.num_output_tokens > 0]
        if self.is_urgent(head, running):
            spare = [r for r in stoppable if several[r.client_id] > 1 or lead(r.client_id, head.client_id) > 0]
            return self.victim(spare)
        return self.victim([r for r in stoppable if lead(r.client_id, head.client_id) > self._lead])

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Assert also the number of running requests of each client."""
        super().check_integrity(waiting_clients)
        running = Counter(account.name for account in self._accounts.values())
        running.subtract(Counter(self._accounts[request_id].name for request_id in self._stopped))
        assert +running == self._num_running, "the number of running requests is wrong"

    def requeued(self, request: Schedulable) -> None:
        """It runs no more, for now."""
        self._stopped.add(request.request_id)
        self._runs_no_more(request)
        super().requeued(request)

    def settle(self, request: Schedulable) -> None:
        """It has ended, running or waiting after it was stopped."""
        if request.request_id in self._stopped:
            self._stopped.remove(request.request_id)
        else:
            self._runs_no_more(request)
        super().settle(request)

    def _runs_no_more(self, request: Schedulable) -> None:
        left = self._num_running[request.client_id] - 1
        if left:
            self._num_running[request.client_id] = left
        else:
            del self._num_running[request.client_id]
