"""Takes a step every second while somebody looks, keeps the last quarter of an hour, and wakes who looks.

Without a viewer nothing runs and nothing is kept: the first token of a request costs one comparison.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Protocol

import msgspec

from evenflow.access.identity import Client
from evenflow.accounts.account_row import Sums
from evenflow.base.errors import NotAllowed
from evenflow.serving.client.messages import EngineStats
from evenflow.serving.server.console.steps import OTHERS, Observed, Step, own_step, whole_step

KEPT_STEPS = 900
"""A quarter of an hour at one step a second."""
TOP_CLIENTS = 12
MOST_NAMES = 10_000
"""Clients observed within a step; on an open server anybody can make up names."""
LONGEST_SAMPLE = 4096
"""First tokens of one client kept within a step; more of them say nothing new of its percentiles."""
LINGER_S = 60.0
"""Steps go on for so long after the last viewer has gone, so that a page that is loaded again finds its history."""


class Watched(Protocol):
    """What the collector reads of a server."""

    def engine_stats(self) -> EngineStats:
        """The latest snapshot."""
        ...

    def weights(self) -> Mapping[str, float]:
        """Weights of the clients that the operator named."""
        ...

    @property
    def is_draining(self) -> bool:
        """True once the server ends."""
        ...


class Collector:
    """Belongs to one event loop. ``unix_time`` may jump: steps are taken by ``sleep``, and only labelled with it."""

    def __init__(
        self,
        watched: Watched,
        unix_time: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._watched = watched
        self._unix_time = unix_time
        self._sleep = sleep
        self._observed: dict[str, Observed] = {}
        self._steps: deque[Step] = deque(maxlen=KEPT_STEPS)
        self._own: dict[str, deque[Step]] = {}
        """By client that looks at itself: its own steps."""
        self._viewers: Counter[str | None] = Counter()
        """How many look, by client; None: administrators."""
        self._number = 0
        self._ticking: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._encoded: tuple[int, bytes] = (-1, b"")
        """The last step as administrators get it, encoded once for all of them."""

    @property
    def is_running(self) -> bool:
        """Whether steps are being taken."""
        return self._ticking is not None

    @property
    def num_steps(self) -> int:
        """How many steps are kept."""
        return len(self._steps)

    def first_token(self, client: str, seconds: float) -> None:
        """A completion of ``client`` had its first token, so many seconds after it arrived."""
        if self._ticking is not None and (client in self._observed or len(self._observed) < MOST_NAMES):
            seen = self._observed.setdefault(client, Observed())
            if len(seen.first_tokens_s) < LONGEST_SAMPLE:
                seen.first_tokens_s.append(seconds)

    def rejected(self, client: str) -> None:
        """A request of ``client`` was turned away."""
        if self._ticking is not None:
            name = client if client in self._observed or len(self._observed) < MOST_NAMES else OTHERS
            self._observed.setdefault(name, Observed()).num_rejected += 1

    def ended(self, client: str, adapter: str | None, outcome: str, sums: Sums) -> None:
        """Completions ended; the engine's own counters tell of them."""

    async def look(self, viewer: Callable[[], Client | None]) -> AsyncGenerator[bytes, None]:
        """Yield the history as one JSON array of steps, then each new step in an array of one.

        ``viewer`` is asked before each of them who looks: None sees everything, a client sees itself. What it raises ends the
        generator.
        """
        client = viewer()
        name = None if client is None else client.name
        self._viewers[name] += 1
        if client is not None:
            self._own.setdefault(client.name, deque(maxlen=KEPT_STEPS))
        try:
            if self._ticking is None:
                self._take_step()
                self._ticking = asyncio.ensure_future(self._tick())
            elif client is not None and not self._own[client.name]:
                self._own[client.name].append(self._own_step(client.name))
            last = self._number
            yield msgspec.json.encode(list(self._steps if client is None else self._own[client.name]))
            while not self._watched.is_draining:
                async with self._changed:
                    while self._number == last:
                        await self._changed.wait()
                last = self._number
                now = viewer()
                if (None if now is None else now.name) != name:
                    raise NotAllowed("the key that looks is somebody else's now")
                yield self._newest(name)
        finally:
            self._viewers[name] -= 1

    def _take_step(self) -> None:
        watched, observed, stats = self._watched, self._observed, self._watched.engine_stats()
        unix_s, weights, is_draining = self._unix_time(), watched.weights(), watched.is_draining
        self._number += 1
        self._steps.append(whole_step(stats, observed, weights, unix_s, top=TOP_CLIENTS, is_draining=is_draining))
        for name, steps in self._own.items():
            steps.append(self._own_step(name))
        self._observed = {name: Observed([], seen.num_rejected) for name, seen in observed.items() if seen.num_rejected}

    def _own_step(self, name: str) -> Step:
        watched = self._watched
        weight = watched.weights().get(name, 1.0)
        return own_step(
            watched.engine_stats(), self._observed, weight, self._unix_time(), name, is_draining=watched.is_draining
        )

    async def close(self) -> None:
        """End the steps."""
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking

    async def _tick(self) -> None:
        idle_s = 0.0
        try:
            while idle_s < LINGER_S:
                await self._sleep(1.0)
                idle_s = 0.0 if self._viewers.total() else idle_s + 1.0
                self._take_step()
                async with self._changed:
                    self._changed.notify_all()
        finally:
            self._ticking = None
            self._steps.clear()
            self._own.clear()
            self._observed = {}

    def _newest(self, name: str | None) -> bytes:
        if name is not None:
            return msgspec.json.encode([self._own[name][-1]])
        if self._encoded[0] != self._number:
            self._encoded = (self._number, msgspec.json.encode([self._steps[-1]]))
        return self._encoded[1]
