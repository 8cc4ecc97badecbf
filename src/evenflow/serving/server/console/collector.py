"""Takes one step a second while a page is open, keeps the last 15 minutes, and encodes each step once for all pages."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator

import msgspec

from evenflow.serving.server.console.steps import ClientRow, Heard, Step, make_step
from evenflow.serving.server.interfaces import Engine
from evenflow.serving.server.metrics.metrics_page import Metrics

MOST_STEPS = 900
STEP_S = 1.0
MOST_FIRST_TOKENS = 4096
"""First tokens of one second that are kept for its percentiles."""
MOST_NAMES = 4096
"""Clients whose rejections are counted by name; those of any more are counted as nobody's."""

_encode = msgspec.json.Encoder().encode


def step_event(step: Step) -> bytes:
    """One server-sent event."""
    return b"event: step\ndata: " + _encode(step) + b"\n\n"


class Collector:
    """One for each server, in its event loop. It ticks while somebody watches, and otherwise costs nothing."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        unix_time: Callable[[], float] = time.time,
        step_s: float = STEP_S,
    ) -> None:
        self._engine, self._metrics, self._clock, self._step_s = engine, metrics, clock, step_s
        self._offset_s = unix_time() - clock()
        self._events: deque[tuple[float, bytes]] = deque(maxlen=MOST_STEPS)
        self._rows: deque[tuple[float, dict[str, ClientRow]]] = deque(maxlen=MOST_STEPS)
        self._watched: dict[str, int] = {}
        self._num_viewers = 0
        self._ticking: asyncio.Task[None] | None = None
        self._ticked = asyncio.Event()
        self._ttft_s: dict[str, list[float]] = {}
        self._num_first_tokens = 0
        self._num_rejected: dict[str, int] = {}

    @property
    def is_ticking(self) -> bool:
        """True while somebody watches."""
        return self._ticking is not None

    @property
    def num_steps(self) -> int:
        """Steps that are kept."""
        return len(self._events)

    def first_token(self, client: str, seconds: float) -> None:
        """See ``metrics_page.Listener``."""
        if self._num_first_tokens < MOST_FIRST_TOKENS:
            self._num_first_tokens += 1
            self._ttft_s.setdefault(client, []).append(seconds)

    def rejected(self, client: str) -> None:
        """See ``metrics_page.Listener``."""
        name = client if client in self._num_rejected or len(self._num_rejected) < MOST_NAMES else ""
        self._num_rejected[name] = self._num_rejected.get(name, 0) + 1

    def tick(self) -> None:
        """Take one step."""
        t = self._clock() + self._offset_s
        heard = Heard(self._ttft_s, self._num_rejected)
        step, rows = make_step(t, self._engine.stats, heard, self._watched)
        self._ttft_s, self._num_first_tokens = {}, 0
        while self._events and self._events[0][0] < t - MOST_STEPS * STEP_S:
            self._events.popleft()
            self._rows.popleft()
        self._events.append((t, step_event(step)))
        self._rows.append((t, rows))
        ticked, self._ticked = self._ticked, asyncio.Event()
        ticked.set()

    async def watch(self, client: str | None, check: Callable[[], None]) -> AsyncGenerator[bytes, None]:
        """Events for one page: what is kept, then each new step. ``client``: sees its own row alone; None: all is seen.

        ``check`` is called before each event and raises when the viewer may see no more.
        """
        with self._viewer(client):
            yield self._history(client)
            while True:
                await self._ticked.wait()
                check()
                yield self._latest(client)

    def _history(self, client: str | None) -> bytes:
        if client is None:
            kept = [event for _, event in self._events]
        else:
            kept = [step_event(Step(t, [rows[client]])) for t, rows in self._rows if client in rows]
        return b"".join(kept) + b"event: live\ndata: {}\n\n"

    def _latest(self, client: str | None) -> bytes:
        if client is None:
            return self._events[-1][1]
        t, rows = self._rows[-1]
        return step_event(Step(t, [rows[client]])) if client in rows else b": nothing yet\n\n"

    @contextlib.contextmanager
    def _viewer(self, client: str | None) -> Iterator[None]:
        self._num_viewers += 1
        if client is not None:
            self._watched[client] = self._watched.get(client, 0) + 1
        if self._ticking is None:
            self._metrics.listener = self
            self._ticking = asyncio.create_task(self._tick_on(), name="console")
        try:
            yield
        finally:
            self._num_viewers -= 1
            if client is not None:
                self._watched[client] -= 1
                if not self._watched[client]:
                    del self._watched[client]
            if not self._num_viewers:
                self._metrics.listener = None
                self._ticking.cancel()
                self._ticking = None
                self._ttft_s, self._num_first_tokens = {}, 0

    async def _tick_on(self) -> None:
        while True:
            self.tick()
            await asyncio.sleep(self._step_s)
