"""Shared counters in memory: what several servers of one fairness have received, and who waits where. No clock, no wire.

The rules are those of the script that Redis runs (policies/shared_script.py), in Python, so that the book can live in
any process that all servers reach: an actor of a Ray cluster, or a simulation. Two differences, both for size: an answer
holds the counters that changed since the server was last told, and nothing is asked for by name; and counters are
forgotten at once when an idle client is no richer than a newcomer, since servers keep their own.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from evenflow.fairness.books.exchange import Answer, Batch

FORGET_AFTER = 300.0
"""Seconds for which the counter of a client that waits nowhere is kept in any case."""


@dataclass(slots=True)
class _Server:
    heard_s: float = 0.0
    waiting: set[str] = field(default_factory=set)
    told: int = 0
    """Changes before this one were in answers that have arrived."""
    sent: int = 0
    """Changes before this one were in the answer to its latest batch, which may have been lost."""


class CounterBook:
    """Owns the counters. ``ttl_s``: a server that is silent for longer has nobody waiting any more."""

    def __init__(self, ttl_s: float = 10.0) -> None:
        self._ttl_s = ttl_s
        self._counters: dict[str, float] = {}
        self._servers: dict[str, _Server] = {}
        self._numbers: dict[str, int] = {}
        """Latest batch applied of every server that ever spoke: one that was silent for long may repeat its last."""
        self._num_waiting_at: dict[str, int] = {}
        self._heap: list[tuple[float, str]] = []
        """Of waiting clients: (a counter that it once had, client); stale entries are corrected when they come up."""
        self._idle_since: dict[str, float] = {}
        self._virtual_time = 0.0
        self._last_left: str | None = None
        self._changes: list[str] = []
        """Clients in the order in which their counters changed, from change number ``_first_change`` on."""
        self._first_change = 0
        self._last_change: dict[str, int] = {}

    def exchange(self, server: str, batch: Batch, now_s: float) -> Answer:
        """Apply ``batch`` once, however often it is sent, and answer with what ``server`` does not know yet.

        A server that the book does not know is answered ``is_unknown`` until it sends a batch that ``introduces`` it.
        """
        self._bury(now_s, server)
        record = self._servers.get(server)
        if record is None and not batch.introduces:
            return Answer(self._level(), {}, is_unknown=True)
        is_new = record is None
        if record is None:
            record = self._servers[server] = _Server()
            for client, counter in batch.known.items():
                if client not in self._counters and math.isfinite(counter):
                    self._set(client, counter, now_s)
        record.heard_s = now_s
        if batch.number > self._numbers.get(server, 0):
            self._numbers[server] = batch.number
            record.told = record.sent
            for client, amount in batch.charges.items():
                if math.isfinite(amount):
                    self._set(client, self._counters.get(client, self._level()) + amount, now_s)
            for client in batch.left:
                self._leave(server, client, now_s)
            if not is_new:
                for client in batch.joined:
                    self._join(server, client, lifts=True)
        if is_new:
            for client in batch.waiting:
                self._join(server, client, lifts=False)
        news = {*batch.joined, *batch.waiting, *self._changed_since(record.told)}
        if is_new:
            news |= self._counters.keys()
        record.sent = self._first_change + len(self._changes)
        self._forget(now_s)
        return Answer(self._level(), {client: self._counters[client] for client in news if client in self._counters})

    def counters(self) -> dict[str, float]:
        """Counter by client, for reports."""
        return dict(self._counters)

    def check_integrity(self) -> None:
        """Assert that the numbers of servers at which clients wait are right, and nobody who waits is without a counter."""
        found: dict[str, int] = {}
        for record in self._servers.values():
            for client in record.waiting:
                found[client] = found.get(client, 0) + 1
        assert found == self._num_waiting_at, "somebody waits at another number of servers than the book says"
        assert found.keys() <= self._counters.keys(), "somebody who waits has no counter"
        if found:
            assert self._level() >= min(self._counters[client] for client in found), "the virtual time is behind"

    def _level(self) -> float:
        """Virtual time: the least counter of all who wait, or that of the last who left; it never falls."""
        while self._heap:
            entry, client = self._heap[0]
            if client not in self._num_waiting_at:
                heapq.heappop(self._heap)
            elif self._counters[client] != entry:
                heapq.heapreplace(self._heap, (self._counters[client], client))
            else:
                self._virtual_time = max(self._virtual_time, entry)
                return self._virtual_time
        if self._last_left is not None:
            self._virtual_time = max(self._virtual_time, self._counters.get(self._last_left, 0.0))
        return self._virtual_time

    def _changed_since(self, number: int) -> Iterator[str]:
        """Clients whose latest change is that one or a later one."""
        for at in range(max(0, number - self._first_change), len(self._changes)):
            if self._last_change.get(self._changes[at]) == at + self._first_change:
                yield self._changes[at]

    def _set(self, client: str, counter: float, now_s: float) -> None:
        is_lower = counter < self._counters.get(client, -math.inf)
        self._counters[client] = counter
        if client not in self._num_waiting_at:
            self._idle_since[client] = now_s
        elif is_lower:
            heapq.heappush(self._heap, (counter, client))
        self._last_change[client] = self._first_change + len(self._changes)
        self._changes.append(client)

    def _join(self, server: str, client: str, *, lifts: bool) -> None:
        waiting = self._servers[server].waiting
        if client in waiting:
            return
        waiting.add(client)
        self._num_waiting_at[client] = self._num_waiting_at.get(client, 0) + 1
        if self._num_waiting_at[client] > 1:
            return
        del self._num_waiting_at[client]  # it does not set the level that it is lifted to
        level = self._level()
        before = self._counters.get(client)
        counter = level if before is None else max(before, level) if lifts else before
        self._num_waiting_at[client] = 1
        self._idle_since.pop(client, None)
        if counter != before:
            self._set(client, counter, 0.0)
        heapq.heappush(self._heap, (counter, client))

    def _leave(self, server: str, client: str, now_s: float) -> None:
        waiting = self._servers[server].waiting
        if client not in waiting:
            return
        self._level()
        waiting.remove(client)
        self._num_waiting_at[client] -= 1
        if self._num_waiting_at[client]:
            return
        del self._num_waiting_at[client]
        self._idle_since[client] = now_s
        if not self._num_waiting_at:
            self._last_left = client

    def _bury(self, now_s: float, speaker: str) -> None:
        for name in [n for n, r in self._servers.items() if n != speaker and now_s - r.heard_s > self._ttl_s]:
            for client in list(self._servers[name].waiting):
                self._leave(name, client, now_s)
            del self._servers[name]

    def _forget(self, now_s: float) -> None:
        """Clients that have been idle for long and are no richer than a newcomer, and changes that every server knows."""
        num_told = min(record.told for record in self._servers.values()) - self._first_change
        if num_told > len(self._changes) // 2 + 1000:
            del self._changes[:num_told]
            self._first_change += num_told
        for client, since_s in list(itertools.islice(self._idle_since.items(), 100)):
            if now_s - since_s < FORGET_AFTER:
                return
            del self._idle_since[client]
            if self._counters[client] <= self._virtual_time and client != self._last_left:
                del self._counters[client]
                self._last_change.pop(client, None)
            else:
                self._idle_since[client] = now_s
