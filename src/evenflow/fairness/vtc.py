"""Virtual Token Counter: every backlogged client gets its weighted share of service (VTC paper, algorithm 2 and section 4.4).

A client's counter is the service it has received, in the cost function's unit, divided by its weight. The
waiting client with the least counter is served next. A client that comes back from idleness is lifted, so
that it cannot have saved up service:

* something is waiting: to the least counter of the waiting clients;
* nothing is waiting: to the counter of the client that left the queue last.

Both are covered by the virtual time V, which never falls. An idle client at or below V would be lifted to
V or higher, so its counter says nothing any more and is forgotten: no state for clients that are away.

Every token is charged once: the whole prompt when the request is picked, before the next pick, each output
token when it is produced. With prices wp and wq, prompts of at most L tokens and a memory of M tokens,
U = max(wp L, wq M): the counters of waiting clients stay within U, and the services of two clients that
stay backlogged within 2 U (lemma 4.3 and theorem 4.4).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from evenflow.fairness.cost import CostFunction, Service, WeightedTokens
from evenflow.fairness.defaults import PolicyDefaults
from evenflow.fairness.heap import RisingHeap
from evenflow.fairness.policy import Schedulable
from evenflow.fairness.queue import ClientQueues
from evenflow.fairness.registry import PolicySettings, refuse_argument
from evenflow.fairness.weights import Weights, weight_lookup


@dataclass(slots=True)
class Account:
    """What one admitted request was promised, has received and was charged."""

    client_id: str
    weight: float
    """The client's weight when the request was admitted: a refund is worth what the charge was."""
    planned_input_tokens: int
    input_tokens: int = 0
    """Prompt tokens received: computed or found in a cache, each once."""
    output_tokens: int = 0
    charged: float = 0.0
    """In the cost function's unit, not divided by the weight."""


class VTC(PolicyDefaults):
    """Weighted VTC. Subclasses change the price while a request runs (``_owed``) or the choice (``pick``)."""

    def __init__(self, queues: ClientQueues, weights: Weights | None = None, cost: CostFunction | None = None) -> None:
        self._queues = queues
        self._weight_of = weight_lookup(weights)
        self._cost = cost or WeightedTokens()
        self._counters: dict[str, float] = {}
        self._accounts: dict[Hashable, Account] = {}
        self._num_admitted: dict[str, int] = {}
        self._waiting = RisingHeap(self._counters)
        self._idle = RisingHeap(self._counters)
        self._virtual_time = 0.0
        self._last_left: str | None = None

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> VTC:
        """Takes no argument."""
        refuse_argument("vtc", argument)
        return cls(settings.queues, settings.weights, settings.cost)

    @property
    def virtual_time(self) -> float:
        """The level to which a client would be lifted now. Never falls."""
        return self._advance()

    def backlogged(self, client_id: str) -> None:
        """Lift the client to the virtual time."""
        level = self._advance()
        self._idle.discard(client_id)
        if self._counters.get(client_id, 0.0) < level or client_id not in self._counters:
            self._counters[client_id] = level
        self._waiting.add(client_id)

    def emptied(self, client_id: str) -> None:
        """The client leaves the queue; if it was the last, newcomers are lifted to its counter."""
        self._advance()
        self._waiting.discard(client_id)
        if not self._waiting:
            self._last_left = client_id
        self._retire(client_id)

    def pick(self, now_s: float) -> Schedulable | None:
        """The oldest request of the waiting client with the least counter."""
        client_id = self._waiting.peek()
        return None if client_id is None else self._queues.head(client_id)

    def admitted(self, request: Schedulable, planned: Service) -> None:
        """Charge the input; nothing if the request was preempted and comes back."""
        if request.request_id in self._accounts:
            return
        self._advance()
        client_id = request.client_id
        account = self._open(request, planned)
        self._accounts[request.request_id] = account
        self._num_admitted[client_id] = self._num_admitted.get(client_id, 0) + 1
        self._charge(account, self._owed(account))

    def charge(self, request: Schedulable, service: Service) -> None:
        """Charge the tokens produced in this step."""
        account = self._accounts[request.request_id]
        account.input_tokens += service.prefill_tokens + service.cached_tokens
        if service.decode_tokens:
            account.output_tokens += service.decode_tokens
            self._charge(account, self._owed(account))

    def settle(self, request: Schedulable) -> None:
        """Bring the charge to the price of what was received. Lower only if the prompt was not finished."""
        account = self._accounts.pop(request.request_id)
        self._charge(account, self._received(account))
        client_id = account.client_id
        left = self._num_admitted[client_id] - 1
        if left:
            self._num_admitted[client_id] = left
        else:
            del self._num_admitted[client_id]
            self._retire(client_id)

    def requeued(self, request: Schedulable) -> None:
        """The client waits again, with the counter it has."""
        if request.client_id not in self._waiting:
            self._waiting.add(request.client_id)

    def victim(self, running: Sequence[Schedulable]) -> Schedulable | None:
        """The newest request of the client with the greatest counter."""
        counters = self._counters
        return max(reversed(running), key=lambda request: (counters[request.client_id], request.arrival_s), default=None)

    def counters(self) -> Mapping[str, float]:
        """Counters of the clients that wait, run, or have had more than the virtual time."""
        return MappingProxyType(self._counters)

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Assert that every remembered client waits, runs or is ahead of the virtual time, and heaps agree with it."""
        self._waiting.check_integrity()
        self._idle.check_integrity()
        assert set(self._waiting) == set(waiting_clients), "the backlogged clients are not those of the queues"
        admitted: dict[str, int] = {}
        for account in self._accounts.values():
            admitted[account.client_id] = admitted.get(account.client_id, 0) + 1
        assert admitted == self._num_admitted, "the number of admitted requests of a client is wrong"
        idle = self._counters.keys() - set(self._waiting) - admitted.keys()
        assert set(self._idle) == idle, "a client that neither waits nor runs is not in the idle heap"
        assert all(self._counters[client] > self._virtual_time for client in idle), "a client was remembered for nothing"

    def _open(self, request: Schedulable, planned: Service) -> Account:
        """The account of a request that starts."""
        return Account(request.client_id, self._weight_of(request.client_id), planned.prefill_tokens + planned.cached_tokens)

    def _owed(self, account: Account) -> float:
        """What a running request should have been charged by now: all of its input and its output so far."""
        return self._cost(account.planned_input_tokens, account.output_tokens)

    def _received(self, account: Account) -> float:
        """The price of what the request has received, at its end."""
        if account.input_tokens == 0 and account.output_tokens == 0:
            return 0.0
        return self._cost(min(account.input_tokens, account.planned_input_tokens), account.output_tokens)

    def _charge(self, account: Account, total: float) -> None:
        """Bring what the request was charged to ``total``. The one place where counters change by service."""
        amount = total - account.charged
        if amount == 0.0:
            return
        account.charged = total
        client_id = account.client_id
        self._counters[client_id] += amount / account.weight
        if amount < 0.0:
            self._waiting.lowered(client_id)

    def _advance(self) -> float:
        """Move the virtual time up to where the paper's lift rules see it now, and forget whom it has overtaken."""
        level = self._virtual_time
        client_id = self._waiting.peek()
        if client_id is None:
            client_id = self._last_left
        if client_id is not None:
            level = max(level, self._counters.get(client_id, level))
        self._virtual_time = level
        while (idle := self._idle.peek()) is not None and self._counters[idle] <= level:
            self._idle.discard(idle)
            del self._counters[idle]
        return level

    def _retire(self, client_id: str) -> None:
        """A client that neither waits nor runs is remembered only while it is ahead of the virtual time."""
        if client_id in self._waiting or client_id in self._num_admitted:
            return
        self._idle.add(client_id)
        self._advance()
