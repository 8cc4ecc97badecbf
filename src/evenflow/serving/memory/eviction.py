"""Which idle adapter goes first when pages are needed: a small object, so that the order can be another one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from evenflow.serving.core.adapter import AdapterRecord
from evenflow.serving.core.request import AdapterDigest


class EvictionOrder(Protocol):
    """The idle adapters that may be evicted, in an order."""

    def add(self, record: AdapterRecord) -> None:
        """The adapter has become idle just now."""
        ...

    def remove(self, digest: AdapterDigest) -> None:
        """The adapter is idle no more: used again, pinned or gone."""
        ...

    def first(self) -> AdapterDigest | None:
        """The adapter to evict next; it stays in the order until removed."""
        ...


class LeastRecentlyUsed:
    """Evict the adapter that has been idle longest."""

    def __init__(self) -> None:
        self._idle: OrderedDict[AdapterDigest, None] = OrderedDict()

    def add(self, record: AdapterRecord) -> None:
        """Last in line."""
        self._idle[record.digest] = None

    def remove(self, digest: AdapterDigest) -> None:
        """Leave the line."""
        del self._idle[digest]

    def first(self) -> AdapterDigest | None:
        """First in line."""
        return next(iter(self._idle), None)
