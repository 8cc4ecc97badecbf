"""Fairness where adapters matter: who pays for loading them, when resident ones may go first, and shares between them.

* ``AdapterVTC``: the bytes of an adapter that is loaded because of a request are charged to its client. A request
  whose adapter is in use may overtake the client that is due, for as long as the overtaking adds up to less than a
  bounded deficit (the idea of DLPM, arXiv 2501.14312, with adapters in the place of prefixes).
* ``AxisVTC``: shares between pairs of client and adapter, in a tree: between clients first and then between the
  adapters of a client, or the other way round.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from typing import Literal

from evenflow.base.errors import RegistryError
from evenflow.fairness.books.cost import CostFunction, Service
from evenflow.fairness.books.in_use import AdaptersInUse
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.books.weights import Weights, weight_lookup
from evenflow.fairness.policies.hierarchy import Path, Tree
from evenflow.fairness.policies.prediction import LengthPredictor, PredictedVTC, parse_predictor
from evenflow.fairness.policies.vtc import Account
from evenflow.fairness.policy import ACCEPT, Verdict
from evenflow.fairness.registry import PolicySettings
from evenflow.fairness.schedulable import Schedulable

MIB = float(2**20)


class AdapterVTC(PredictedVTC):
    """Predicted VTC that charges adapter loads and prefers, within a bound, requests whose adapter is in use.

    ``max_overtaking``: service, in the cost function's unit, that may be admitted past the client that is due before
    it must be served. ``price_per_mib``: service that a MiB of adapter costs; the default of 2 is what 16 MiB of
    adapter displace in a 7B model's KV cache (32 tokens).

    The bound is that of predicted VTC with U + ``max_overtaking`` in the place of U, where U includes the price of the
    adapters that one batch may load.
    """

    def __init__(
        self,
        queues: ClientQueues,
        weights: Weights | None = None,
        cost: CostFunction | None = None,
        predictor: LengthPredictor | None = None,
        *,
        max_overtaking: float = 4000.0,
        price_per_mib: float = 2.0,
        most_candidates: int = 16,
    ) -> None:
        super().__init__(queues, weights, cost, predictor)
        self._max_overtaking = max_overtaking
        self._price_per_byte = price_per_mib / MIB
        self._most_candidates = most_candidates
        self._in_use = AdaptersInUse()
        self._overtaken = 0.0

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> AdapterVTC:
        """``vtc-adapter[:MAX_OVERTAKING[:PRICE_PER_MIB]]``."""
        overtaking, _, price = (argument or "4000").partition(":")
        try:
            values = float(overtaking), float(price or 2.0)
        except ValueError:
            values = (-1.0, -1.0)
        if not all(0 <= value < float("inf") for value in values):
            raise RegistryError(f"vtc-adapter takes MAX_OVERTAKING[:PRICE_PER_MIB], numbers from 0, got {argument!r}")
        return cls(settings.queues, settings.weights, settings.cost, max_overtaking=values[0], price_per_mib=values[1])

    def pick(self, now_s: float) -> Schedulable | None:
        """The head of the client that is due; or, within the bound, of the next ones if its adapter is in use."""
        if self._overtaken < self._max_overtaking and self._in_use:
            left = self._max_overtaking - self._overtaken
            for client_id in self._level.nearest(left, self._most_candidates):
                head = self._queues.head(client_id)
                assert head is not None
                if head.adapter is None or head.adapter in self._in_use:
                    return head
        return super().pick(now_s)

    def admitted(self, request: Schedulable, planned: Service) -> None:
        """Charge the predicted cost and the load, and count what overtakes the client that is due."""
        self._in_use.start(request)
        due = self._level.least()
        is_new = request.request_id not in self._accounts
        super().admitted(request, planned)
        if due is None or due == request.client_id:
            self._overtaken = 0.0
        elif is_new:
            self._overtaken += self._accounts[request.request_id].reserved

    def charge(self, request: Schedulable, service: Service) -> None:
        """Charge tokens, and the load once it has happened."""
        account = self._accounts[request.request_id]
        account.extra += service.adapter_bytes * self._price_per_byte
        super().charge(request, service)

    def price(self, service: Service) -> float:
        """Tokens, and the loads of adapters."""
        return super().price(service) + service.adapter_bytes * self._price_per_byte

    def settle(self, request: Schedulable) -> None:
        """It uses its adapter no more."""
        super().settle(request)
        self._in_use.stop(request)

    def requeued(self, request: Schedulable) -> None:
        """It uses its adapter no more, for now."""
        super().requeued(request)
        self._in_use.stop(request)

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Assert also the counts of adapters in use."""
        super().check_integrity(waiting_clients)
        self._in_use.check_integrity(self._accounts)
        assert self._overtaken >= 0

    def _open(self, request: Schedulable, planned: Service) -> Account:
        account = super()._open(request, planned)
        account.planned_extra = planned.adapter_bytes * self._price_per_byte
        return account


class AxisVTC(PredictedVTC):
    """Predicted VTC between pairs of client and adapter. Weights are of clients; adapters count alike.

    It keeps a FIFO for each pair, so a client's requests to one adapter do not wait for those to another. Requests to
    the base model are a pair of their own. The bound of predicted VTC holds between the children of each node.
    ``counters`` are of pairs (client, newline, adapter).
    """

    def __init__(
        self,
        queues: ClientQueues,
        first: Literal["client", "adapter"],
        weights: Weights | None = None,
        cost: CostFunction | None = None,
        predictor: LengthPredictor | None = None,
    ) -> None:
        weight = weight_lookup(weights)
        self._fifos: dict[str, OrderedDict[Hashable, Schedulable]] = {}

        def path_of(pair: str) -> Path:
            client, _, adapter = pair.rpartition("\n")
            return client if first == "client" else adapter, pair

        def weight_of(path: Path) -> float:
            is_client = (len(path) == 1) == (first == "client")
            return weight(path[-1].rpartition("\n")[0] or path[0]) if is_client else 1.0

        self._tree = Tree(2, path_of, weight_of)
        super().__init__(queues, None, cost, predictor, self._tree)

    def arrive(self, request: Schedulable, now_s: float) -> Verdict:
        """Accept, and queue it behind those of its pair."""
        self._push(request)
        return ACCEPT

    def backlogged(self, client_id: str) -> None:
        """Pairs join, not clients."""

    def emptied(self, client_id: str) -> None:
        """Pairs leave, not clients."""

    def pick(self, now_s: float) -> Schedulable | None:
        """The oldest request of the pair that is due."""
        pair = self._tree.least()
        return None if pair is None else next(iter(self._fifos[pair].values()))

    def upcoming(self, at_most: int) -> Sequence[Schedulable]:
        """The one that is due: whose turn comes after it depends on what it is charged."""
        due = self.pick(0.0)
        return [] if due is None else [due]

    def admitted(self, request: Schedulable, planned: Service) -> None:
        """Charge it, and take it out of its FIFO."""
        super().admitted(request, planned)
        self._remove(request)

    def requeued(self, request: Schedulable) -> None:
        """Back at the head of its FIFO."""
        pair = pair_of(request)
        self._fifos.setdefault(pair, OrderedDict())[request.request_id] = request
        self._fifos[pair].move_to_end(request.request_id, last=False)
        super().requeued(request)

    def settle(self, request: Schedulable) -> None:
        """It has ended, running or waiting after a preemption."""
        self._remove(request)
        super().settle(request)

    def cancelled(self, request: Schedulable) -> None:
        """It left its FIFO."""
        self._remove(request)

    def ahead(self, request: Schedulable, head: Schedulable) -> float:
        """Between the branches of the two pairs where they part."""
        return self._tree.gap(pair_of(request), pair_of(head))

    def victim(self, running: Sequence[Schedulable]) -> Schedulable | None:
        """The newest request of the richest branch of the tree."""
        return max(reversed(running), key=lambda r: (self._tree.standing(pair_of(r)), r.arrival_s), default=None)

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Assert the FIFOs against the queues, and the tree against the FIFOs."""
        assert all(self._fifos.values()), "an empty FIFO was kept"
        assert {r.client_id for fifo in self._fifos.values() for r in fifo.values()} == set(waiting_clients)
        super().check_integrity(self._fifos.keys())

    def _open(self, request: Schedulable, planned: Service) -> Account:
        account = super()._open(request, planned)
        account.name = pair_of(request)
        return account

    def _push(self, request: Schedulable) -> None:
        pair = pair_of(request)
        if pair not in self._fifos:
            self._fifos[pair] = OrderedDict()
            self._tree.join(pair)
        self._fifos[pair][request.request_id] = request

    def _remove(self, request: Schedulable) -> None:
        pair = pair_of(request)
        fifo = self._fifos.get(pair)
        if fifo is not None and fifo.pop(request.request_id, None) is not None and not fifo:
            del self._fifos[pair]
            self._tree.leave(pair)


class ClientAdapterVTC(AxisVTC):
    """``vtc-client-adapter``: clients share, within the bound of predicted VTC, and so do the adapters of a client."""

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> ClientAdapterVTC:
        """Takes a predictor, as ``vtc-predict``."""
        return cls(settings.queues, "client", settings.weights, settings.cost, parse_predictor(argument))


class AdapterClientVTC(AxisVTC):
    """``vtc-adapter-client``: adapters share, within the bound of predicted VTC, and so do the clients of an adapter."""

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> AdapterClientVTC:
        """Takes a predictor, as ``vtc-predict``."""
        return cls(settings.queues, "adapter", settings.weights, settings.cost, parse_predictor(argument))


def pair_of(request: Schedulable) -> str:
    """The name of the pair of client and adapter."""
    return f"{request.client_id}\n{request.adapter or ''}"
