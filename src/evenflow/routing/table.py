"""The books of one who routes: what was sent where, corrected by what the replicas report now and then.

Between two reports an adapter counts as resident where a request for it was sent last; a report replaces that guess.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenflow.routing.router import ReplicaView, RoutedRequest, Router

MOST_ADAPTERS = 4096
"""Guessed to be resident on one replica; a report may name more."""


class RoutingTable:
    """Owns the views of all replicas, and asks ``router`` where requests go."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._replicas: dict[str, ReplicaView] = {}
        self._foreign: dict[str, float] = {}

    @property
    def replicas(self) -> list[ReplicaView]:
        """All that may be chosen."""
        return list(self._replicas.values())

    def joined(self, name: str) -> None:
        """A replica that takes requests from now on. Idempotent."""
        self._replicas.setdefault(name, ReplicaView(name))

    def left(self, name: str) -> None:
        """A replica that takes none any more; what it still answers ends later. Idempotent."""
        self._replicas.pop(name, None)
        self._foreign.pop(name, None)

    def route(self, request: RoutedRequest, excluded: Iterable[str] = ()) -> str | None:
        """Choose a replica, count the request there and return its name; None if there is none but ``excluded``."""
        barred = set(excluded)
        candidates = [replica for name, replica in self._replicas.items() if name not in barred]
        if not candidates:
            return None
        chosen = self._router.choose(request, candidates)
        chosen.load += request.service
        chosen.num_requests += 1
        if request.adapter is not None:
            chosen.adapters.pop(request.adapter, None)
            chosen.adapters[request.adapter] = None
            while len(chosen.adapters) > MOST_ADAPTERS:
                del chosen.adapters[next(iter(chosen.adapters))]
        chosen.prefixes.add(request.blocks)
        return chosen.name

    def ended(self, name: str, request: RoutedRequest) -> None:
        """A request that was routed to ``name`` has ended, in whatever way. Nothing happens if that replica has left."""
        replica = self._replicas.get(name)
        if replica is not None:
            replica.load = max(0.0, replica.load - request.service)
            replica.num_requests = max(0, replica.num_requests - 1)

    def resident(self, name: str, adapters: Iterable[str]) -> None:
        """``name`` says which adapters are resident. Nothing happens if that replica has left."""
        if (replica := self._replicas.get(name)) is not None:
            replica.adapters = dict.fromkeys(adapters)

    def foreign(self, name: str, load: float) -> None:
        """``name`` says how much service waits or runs there that others have sent. Nothing happens if it has left."""
        if (replica := self._replicas.get(name)) is not None:
            replica.load = max(0.0, replica.load + load - self._foreign.get(name, 0.0))
            self._foreign[name] = load
