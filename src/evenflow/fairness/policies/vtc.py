"""Virtual Token Counter: every backlogged client gets its weighted share of service (VTC paper, algorithm 2 and section 4.4).

A client's counter is the service it has received and the prompts it has been charged for in advance, in the cost
function's unit, divided by its weight. The waiting client with the least counter is served next; one that comes back
from idleness is lifted (level.py).

Every token is charged once: the whole prompt when the request is picked, before the next pick, each output
token when it is produced. Let U be the most that one client's running requests can still be charged once it has been
picked for the last time. Then what waiting clients have received stays within U, and the services W of two clients f and
g of weights w that stay backlogged obey |W_f / w_f - W_g / w_g| <= U (1 / w_f + 1 / w_g), which is 2 U for weights of 1
(lemma 4.3 and theorem 4.4).

With prices wp and wq, prompts of at most L tokens and a memory of M tokens that is set aside for whole requests when
they start, U = max(wp L, wq M), the paper's. A server that lets requests grow into memory as it becomes free gives more
after the decision: while n of a client's requests run in step, the k-th last of them to leave, finished or preempted,
has at most M / k tokens, so U is up to wq M (1 + 1/2 + ... + 1/n). The same holds for LightLLM's peak test. A prompt that
is aborted before it is computed is given back, so its client may lag by another wp M at most, all of its own making.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from evenflow.fairness.books.bill import Bill
from evenflow.fairness.books.cost import CostFunction, Service, WeightedTokens
from evenflow.fairness.books.level import Level
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.books.weights import Weights, weight_lookup
from evenflow.fairness.defaults import PolicyDefaults
from evenflow.fairness.registry import PolicySettings, refuse_argument
from evenflow.fairness.schedulable import Schedulable


@dataclass(slots=True)
class Account:
    """What one admitted request was promised, has received and was charged."""

    name: str
    """Of the competitor that pays: the client, for most policies."""
    weight: float
    """The client's weight when the request was admitted: a refund is worth what the charge was."""
    planned_input_tokens: int
    """Prompt tokens to compute."""
    planned_cached_tokens: int
    """Prompt tokens to take from a cache."""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    expected_output_tokens: int = 0
    """Of a prediction, when the request was admitted; 0 without one."""
    planned_extra: float = 0.0
    """Due at admission beside the tokens, e.g. for the load of an adapter."""
    extra: float = 0.0
    """The same, received."""
    reserved: float = 0.0
    """Charged at admission, in the cost function's unit: what runs is charged this, or what it has received if that is more."""
    bill: Bill = field(init=False)


class VTC(PolicyDefaults):
    """Weighted VTC, with the paper's bound; see the module.

    Subclasses change what is charged in advance (``_reserved``), the level or the choice (``pick``).
    """

    def __init__(
        self,
        queues: ClientQueues,
        weights: Weights | None = None,
        cost: CostFunction | None = None,
        level: Level | None = None,
    ) -> None:
        self._queues = queues
        self._weight_of = weight_lookup(weights)
        self._cost = cost or WeightedTokens()
        self._level = Level() if level is None else level  # an empty level is false
        self._accounts: dict[Hashable, Account] = {}

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> VTC:
        """Takes no argument."""
        refuse_argument("vtc", argument)
        return cls(settings.queues, settings.weights, settings.cost)

    @property
    def virtual_time(self) -> float:
        """The level to which a client would be lifted now. Never falls."""
        return self._level.virtual_time

    def backlogged(self, client_id: str) -> None:
        """Lift the client to the virtual time."""
        self._level.join(client_id)

    def emptied(self, client_id: str) -> None:
        """The client leaves the queue; if it was the last, newcomers are lifted to its counter."""
        self._level.leave(client_id)

    def pick(self, now_s: float) -> Schedulable | None:
        """The oldest request of the waiting client with the least counter."""
        client_id = self._level.least()
        return None if client_id is None else self._queues.head(client_id)

    def upcoming(self, at_most: int) -> Sequence[Schedulable]:
        """The clients with the least counters, one request each, then their second ones, ..."""
        return self._queues.interleaved(self._level.nearest(math.inf, at_most), at_most)

    def admitted(self, request: Schedulable, planned: Service) -> None:
        """Charge the input; nothing if the request was preempted and comes back."""
        if request.request_id in self._accounts:
            return
        account = self._open(request, planned)
        self._accounts[request.request_id] = account
        self._level.hold(account.name)
        account.bill = self._level.open(account.name, account.weight)
        account.reserved = self._reserved(account)
        self._level.bring(account.bill, 0.0, account.reserved)

    def charge(self, request: Schedulable, service: Service) -> None:
        """Charge the tokens of this step; those that were charged in advance are only received."""
        account = self._accounts[request.request_id]
        account.input_tokens += service.prefill_tokens
        account.cached_tokens += service.cached_tokens
        account.output_tokens += service.decode_tokens
        received = self._received(account)
        self._level.bring(account.bill, received, max(0.0, account.reserved - received))

    def settle(self, request: Schedulable) -> None:
        """Give back what was charged in advance and not received."""
        account = self._accounts.pop(request.request_id)
        self._level.finish(account.bill, self._received(account))
        self._level.release(account.name)

    def requeued(self, request: Schedulable) -> None:
        """The client waits again, with the counter it has."""
        self._level.rejoin(self._accounts[request.request_id].name)

    def victim(self, running: Sequence[Schedulable]) -> Schedulable | None:
        """The newest request of the client that has received most."""
        received = self._level.received
        return max(reversed(running), key=lambda request: (received(request.client_id), request.arrival_s), default=None)

    def ahead(self, request: Schedulable, head: Schedulable) -> float:
        """Difference of the two clients' counters."""
        return self._level.gap(request.client_id, head.client_id)

    def price(self, service: Service) -> float:
        """The cost function's price of the tokens; 0 if there are none."""
        if not (service.prefill_tokens or service.cached_tokens or service.decode_tokens):
            return 0.0
        return self._cost(service.prefill_tokens, service.decode_tokens, service.cached_tokens)

    def counters(self) -> Mapping[str, float]:
        """Counters of the clients that wait, run, or have had more than the virtual time."""
        return self._level.counters

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Assert that the level agrees with the queues and with the open accounts."""
        num_held: dict[str, int] = {}
        for account in self._accounts.values():
            num_held[account.name] = num_held.get(account.name, 0) + 1
        self._level.check_integrity(waiting_clients, num_held)

    def _open(self, request: Schedulable, planned: Service) -> Account:
        """The account of a request that starts."""
        return Account(request.client_id, self._weight_of(request.client_id), planned.prefill_tokens, planned.cached_tokens)

    def _reserved(self, account: Account) -> float:
        """What a request is charged when it starts: all of its prompt, and what else is due then."""
        return self._cost(account.planned_input_tokens, 0, account.planned_cached_tokens) + account.planned_extra

    def _received(self, account: Account) -> float:
        """The price of what the request has received so far. Never falls."""
        if not (account.input_tokens or account.cached_tokens or account.output_tokens):
            return account.extra
        planned = account.planned_input_tokens + account.planned_cached_tokens
        tokens = self._cost(min(account.input_tokens, planned), account.output_tokens, account.cached_tokens)
        return tokens + account.extra
