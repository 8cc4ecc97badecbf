"""The seam of routing: what a router knows of each engine behind it, and the one question it is asked.

A replica's *load* is the service, in weighted tokens, of all requests that were sent there and have not ended, whether they
wait or run. It is what the next request waits behind, so it is what routers level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from evenflow.routing.prefixes import PrefixBook


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    """What of a request matters for where it goes."""

    adapter: str | None = None
    """Name or digest, as the replicas' views have it; None: the base model."""
    service: float = 1.0
    """What it will probably cost, in weighted tokens; above 0."""
    blocks: tuple[int, ...] = ()
    """Hashes of the beginnings of its prompt, the shortest first; see ``prefixes.py``."""


@dataclass(slots=True)
class ReplicaView:
    """One engine, as the one who routes sees it. Owned by a RoutingTable, which alone changes it."""

    name: str
    load: float = 0.0
    """Weighted tokens of service sent there and not ended."""
    num_requests: int = 0
    """Requests sent there and not ended."""
    adapters: dict[str, None] = field(default_factory=dict)
    """Believed to be resident there, the longest unused first."""
    prefixes: PrefixBook = field(default_factory=PrefixBook)


class Router(Protocol):
    """Chooses. Deterministic, given its seed and the calls before; changes nothing in the views."""

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """One of ``replicas``, which is not empty; its order means nothing."""
        ...
