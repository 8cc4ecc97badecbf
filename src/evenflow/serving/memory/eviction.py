"""Which idle adapter goes first when pages are needed: a small object, chosen by name.

An order sees every use of an adapter and who is idle now. It reads no clock: its time is the number of uses so far.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from evenflow.base.errors import ConfigError
from evenflow.base.heaps import ascending
from evenflow.base.registry import Registry
from evenflow.serving.core.adapter import AdapterRecord
from evenflow.serving.core.request import AdapterDigest


class EvictionOrder(Protocol):
    """The idle adapters that may be evicted, in an order."""

    def used(self, record: AdapterRecord) -> None:
        """A request starts with the adapter, resident or not. It is not idle now, or about to be removed."""
        ...

    def add(self, record: AdapterRecord) -> None:
        """The adapter has become idle just now."""
        ...

    def remove(self, digest: AdapterDigest) -> None:
        """The adapter is no longer idle: it is used again, or pinned, or gone."""
        ...

    def first(self) -> AdapterDigest | None:
        """The adapter to evict next; it stays in the order until removed."""
        ...

    def ranked(self) -> Iterator[AdapterDigest]:
        """All idle adapters, the one to evict next first. The order must not be changed while this is iterated."""
        ...

    def forget(self, digest: AdapterDigest) -> None:
        """The adapter has been unloaded and is not idle: forget everything about it."""
        ...


class LeastRecentlyUsed:
    """Evict the adapter that has been idle longest."""

    def __init__(self) -> None:
        self._idle: OrderedDict[AdapterDigest, None] = OrderedDict()

    def used(self, record: AdapterRecord) -> None:
        """Nothing is noted: when the adapter is idle again, it is the last to be evicted."""

    def add(self, record: AdapterRecord) -> None:
        """Last in line."""
        self._idle[record.digest] = None

    def remove(self, digest: AdapterDigest) -> None:
        """Leave the line."""
        del self._idle[digest]

    def first(self) -> AdapterDigest | None:
        """First in line."""
        return next(iter(self._idle), None)

    def ranked(self) -> Iterator[AdapterDigest]:
        """In line."""
        return iter(self._idle)

    def forget(self, digest: AdapterDigest) -> None:
        """Nothing is kept."""


class CostAware:
    """Evict the adapter whose loss costs least: recency, popularity and reload bytes in one score.

    In the manner of Chameleon (arXiv 2411.17741), which weighs the three; here they multiply:

        score = (sum over past uses of 2^(-age / half_life)) * bytes^size_exponent

    The sum is how often the adapter is likely to be wanted (recency and frequency in one, as in LRFU). Ages grow
    alike for all, so the order of idle adapters stays as it is while they are idle, and a heap holds it: O(log n).
    ``size_exponent``: what a page holds is worth the chance that it is wanted, whoever holds it, which is 0; above
    0 dear adapters are kept in favour of many cheap ones, as Chameleon does; below 0 the reverse, as GreedyDual-Size does.
    """

    def __init__(self, half_life: float = 500.0, size_exponent: float = 0.0) -> None:
        if not half_life > 0 or not math.isfinite(size_exponent):
            raise ConfigError(f"half_life is {half_life}, size_exponent {size_exponent}; allowed: above 0, finite")
        self._half_life = half_life
        self._size_exponent = size_exponent
        self._num_uses = 0
        self._popularity: dict[AdapterDigest, tuple[float, int]] = {}
        """(sum of decayed uses at that time, time)"""
        self._entries: dict[AdapterDigest, int] = {}
        self._heap: list[tuple[float, int, AdapterDigest]] = []
        self._next_entry = 0

    def used(self, record: AdapterRecord) -> None:
        """One more use, now."""
        self._num_uses += 1
        popularity, at = self._popularity.get(record.digest, (0.0, self._num_uses))
        decayed = popularity * 2.0 ** ((at - self._num_uses) / self._half_life)
        self._popularity[record.digest] = (decayed + 1.0, self._num_uses)

    def add(self, record: AdapterRecord) -> None:
        """Enter it with the score it keeps until it is removed."""
        popularity, at = self._popularity.get(record.digest, (1.0, self._num_uses))
        score = math.log2(popularity) + at / self._half_life + self._size_exponent * math.log2(max(1, record.size_bytes))
        self._next_entry += 1
        self._entries[record.digest] = self._next_entry
        heapq.heappush(self._heap, (score, self._next_entry, record.digest))

    def remove(self, digest: AdapterDigest) -> None:
        """Take it out; its uses are remembered."""
        del self._entries[digest]
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [item for item in self._heap if self._entries.get(item[2]) == item[1]]
            heapq.heapify(self._heap)

    def first(self) -> AdapterDigest | None:
        """The one with the least score; of equal ones the one that was entered first."""
        while self._heap:
            _, entry, digest = self._heap[0]
            if self._entries.get(digest) == entry:
                return digest
            heapq.heappop(self._heap)
        return None

    def ranked(self) -> Iterator[AdapterDigest]:
        """By score. The first k in O(k log k)."""
        return (digest for _, entry, digest in ascending(self._heap) if self._entries.get(digest) == entry)

    def forget(self, digest: AdapterDigest) -> None:
        """Its uses are forgotten."""
        self._popularity.pop(digest, None)


EVICTION_ORDERS = Registry(
    "adapter eviction",
    {
        "lru": "evenflow.serving.memory.eviction:LeastRecentlyUsed",
        "cost-aware": "evenflow.serving.memory.eviction:CostAware",
    },
)
"""Orders by the name that --adapter-eviction takes; each is made without arguments."""
