"""Clients by a key that mostly rises, least first. Bookkeeping only; what the key means is the policy's business.

Keys are read from a mapping that the owner changes directly. A raised key costs nothing here: the heap
keeps the old key as a lower bound and repairs an entry when it reaches the top. Selection is O(log n)
amortised over the raises, and a client that is charged every step but never near the top is never touched.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping


class RisingHeap:
    """A min-heap of clients over ``keys``. The owner must call ``lowered`` when a client's key has fallen.

    Clients with equal keys come in the order in which they were added.
    """

    def __init__(self, keys: Mapping[str, int]) -> None:
        self._keys = keys
        self._heap: list[tuple[int, int, str]] = []
        self._entry_of: dict[str, int] = {}
        self._next_entry = 0

    def add(self, client_id: str) -> None:
        """Enter a client that is not in the heap. Its key must exist."""
        assert client_id not in self._entry_of, f"client {client_id!r} is in the heap already"
        self._push(client_id)

    def discard(self, client_id: str) -> None:
        """Take a client out, if it is in."""
        if self._entry_of.pop(client_id, None) is not None:
            self._compact()

    def lowered(self, client_id: str) -> None:
        """The key of a client has fallen: enter it again, ahead of its old entry."""
        if client_id in self._entry_of:
            self._push(client_id)
            self._compact()

    def peek(self) -> str | None:
        """The client with the least key, or None. It stays in the heap."""
        heap, keys, entry_of = self._heap, self._keys, self._entry_of
        while heap:
            key, entry, client_id = heap[0]
            if entry_of.get(client_id) != entry:
                heapq.heappop(heap)
                continue
            current = keys[client_id]
            if current <= key:
                return client_id
            heapq.heapreplace(heap, (current, entry, client_id))
        return None

    def nearest(self, within: float, at_most: int) -> list[str]:
        """Up to ``at_most`` clients, least first, whose keys exceed the least by no more than ``within``. O(at_most log n)."""
        found: list[tuple[int, int, str]] = []
        while len(found) < at_most and self.peek() is not None:
            if found and self._heap[0][0] > found[0][0] + within:
                break
            found.append(heapq.heappop(self._heap))
        for entry in found:
            heapq.heappush(self._heap, entry)
        return [client_id for _, _, client_id in found]

    def __contains__(self, client_id: object) -> bool:
        return client_id in self._entry_of

    def __len__(self) -> int:
        return len(self._entry_of)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entry_of)

    def check_integrity(self) -> None:
        """Assert that every client has one live entry, whose key is at most its present one."""
        live = {client: key for key, entry, client in self._heap if self._entry_of.get(client) == entry}
        assert live.keys() == self._entry_of.keys(), "a client has lost its entry"
        assert all(key <= self._keys[client] for client, key in live.items()), "a key fell without a call of lowered()"
        assert len(self._heap) <= 2 * len(self._entry_of) + 64, "dead entries were kept"

    def _push(self, client_id: str) -> None:
        self._next_entry += 1
        self._entry_of[client_id] = self._next_entry
        heapq.heappush(self._heap, (self._keys[client_id], self._next_entry, client_id))

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._entry_of) + 64:
            self._heap = [entry for entry in self._heap if self._entry_of.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
