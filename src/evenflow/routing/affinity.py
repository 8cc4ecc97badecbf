"""Routing by warmth within bounded imbalance: the default.

A replica is *eligible* if its load is at most that of the least loaded one plus

    slack = least_slack + fraction * (mean load of all)

in weighted tokens. Of the eligible ones, in this order:

1. those that have the adapter, and of these the one that shares the longest beginning of the prompt, then the least loaded;
2. the adapter's *home* (rendezvous hashing, Thaler and Ravishankar 1998), so that several who route send a cold adapter to
   the same replica without talking to each other;
3. the least loaded.

So a request never waits behind more than ``slack`` weighted tokens that it could have avoided, and an adapter that asks for
more than its replicas can give goes to the next one (rule 3), which then has it too: it spreads as far as its load wants.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from evenflow.base.errors import ConfigError
from evenflow.routing.router import ReplicaView, RoutedRequest

LEAST_SLACK = 2048.0
FRACTION = 0.25


class Affinity:
    """``fraction`` and ``least_slack`` bound the imbalance, as the module says. Raises ConfigError for negative ones."""

    def __init__(self, fraction: float = FRACTION, least_slack: float = LEAST_SLACK) -> None:
        if not (0 <= fraction < float("inf") and 0 <= least_slack < float("inf")):
            raise ConfigError(f"affinity's imbalance is {fraction} and {least_slack}; allowed: finite and 0 or more")
        self._fraction = fraction
        self._least_slack = least_slack

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """The warmest that is not too far above the least loaded."""
        limit = self.limit(replicas)
        eligible = [replica for replica in replicas if replica.load <= limit]
        adapter = request.adapter
        warm = eligible if adapter is None else [replica for replica in eligible if adapter in replica.adapters]
        shared = [replica.prefixes.num_shared_tokens(request.blocks) for replica in warm] if request.blocks else []
        if warm and (adapter is not None or any(shared)):
            order = zip(shared or [0] * len(warm), warm, strict=True)
            return min(order, key=lambda pair: (-pair[0], pair[1].load, pair[1].name))[1]
        least = min(eligible, key=lambda replica: (replica.load, replica.name))
        if adapter is None:
            return least
        home = max(replicas, key=lambda replica: _draw(adapter, replica.name))
        has_spread = any(adapter in replica.adapters for replica in replicas)
        return home if home.load <= limit and not has_spread else least

    def limit(self, replicas: Sequence[ReplicaView]) -> float:
        """The load above which a replica is not chosen."""
        loads = [replica.load for replica in replicas]
        return min(loads) + self._least_slack + self._fraction * sum(loads) / len(loads)


def _draw(adapter: str, replica: str) -> int:
    mixed = zlib.crc32(f"{adapter}\0{replica}".encode()) * 0x9E3779B1 & 0xFFFFFFFF  # crc32 alone is linear
    return (mixed ^ mixed >> 15) * 0x85EBCA77 & 0xFFFFFFFF
