"""Routers to compare with: at random, the least loaded, and by resident model as Ray Serve's multiplexing does it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evenflow.routing.router import ReplicaView, RoutedRequest


class RandomRouter:
    """Anywhere, with equal chances."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """One drawn at random."""
        return self._random.choice(replicas)


class LeastLoaded:
    """Where the least service waits; among equals one drawn at random."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """The one of least load."""
        least = min(replica.load for replica in replicas)
        return self._random.choice([replica for replica in replicas if replica.load <= least])


class Multiplexed:
    """As Ray Serve routes requests with a multiplexed model id.

    Of the replicas that hold the adapter, or else of those that hold the fewest, two are drawn and the one with fewer
    requests is taken. Others are thought of only when all of these have ``max_ongoing`` requests, so a hot adapter stays on
    one replica until then (ray issue 65691).
    """

    def __init__(self, seed: int = 0, max_ongoing: int = 256) -> None:
        self._random = random.Random(seed)
        self._max_ongoing = max_ongoing

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """The better of two warm ones."""
        candidates = list(replicas)
        if request.adapter is not None:
            warm = [replica for replica in replicas if request.adapter in replica.adapters]
            if not warm:
                fewest = min(len(replica.adapters) for replica in replicas)
                warm = [replica for replica in replicas if len(replica.adapters) == fewest]
            candidates = [replica for replica in warm if replica.num_requests < self._max_ongoing] or candidates
        drawn = self._random.sample(candidates, min(2, len(candidates)))
        return min(drawn, key=lambda replica: replica.num_requests)
