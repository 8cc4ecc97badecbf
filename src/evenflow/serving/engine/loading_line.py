"""The line of adapter folders to be read: who is next, so that folders that hang delay nobody else's for long.

Nothing tells a folder that hangs from a good one before its time is up, so three rules bound what it costs others:

* loads of different clients take turns, whoever has fewest under way first;
* a load that has taken longer than ``PATIENCE_S`` gives up its place to the next one and goes on beside it, as long as
  there are readers left;
* one client's loads never have all the readers: the last ``_KEPT`` are for others.

So the loads of one client that all hang delay another client's by ``PATIENCE_S`` at most, however many they are.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from evenflow.serving.adapters.catalog import PreparedAdapter

PATIENCE_S = 1.0
"""A load that takes longer is slow: it no longer keeps others from beginning."""
_AT_ONCE = 2
"""Loads that are not slow and run at once: the cores are the engine's."""
_READERS = 6
"""Loads that run at once, slow ones too; each has a process of its own."""
_KEPT = 2
"""Readers that one client's loads may not take."""


@dataclass
class _Load:
    client_id: str
    prepare: Callable[[], PreparedAdapter]
    future: Future[PreparedAdapter]
    began_s: float = 0.0


class LoadingLine:
    """Owns the threads that wait for readers. ``submit`` and ``advance``: one thread. ``clock``: seconds, monotonic.

    The threads live as long as the line: the kernel ends a reader with the thread that started it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._threads = ThreadPoolExecutor(_READERS, "adapter-loader")
        self._waiting: OrderedDict[str, deque[_Load]] = OrderedDict()
        self._running: list[_Load] = []

    def submit(self, prepare: Callable[[], PreparedAdapter], client_id: str = "") -> Future[PreparedAdapter]:
        """Have ``prepare`` called once it is its turn. ``client_id``: who asks; empty: the server itself."""
        load = _Load(client_id, prepare, Future())
        self._waiting.setdefault(client_id, deque()).append(load)
        self.advance()
        return load.future

    def advance(self) -> None:
        """Begin what may begin now. To be called often while anything waits: nothing else notices that time passes."""
        now_s = self._clock()
        self._running = [load for load in self._running if not load.future.done()]
        while (load := self._next(now_s)) is not None:
            load.began_s = now_s
            self._running.append(load)
            self._threads.submit(_run, load)

    def close(self) -> None:
        """Begin nothing more; what runs is not waited for."""
        self._waiting.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _next(self, now_s: float) -> _Load | None:
        num_quick = sum(now_s - load.began_s < PATIENCE_S for load in self._running)
        if not self._waiting or num_quick >= _AT_ONCE or len(self._running) >= _READERS:
            return None
        running = dict.fromkeys(self._waiting, 0)
        for load in self._running:
            if load.client_id in running:
                running[load.client_id] += 1
        client_id = min(running, key=running.__getitem__)  # of equals, whoever has waited longest since their last turn
        if running[client_id] >= _READERS - _KEPT:
            return None
        loads = self._waiting.pop(client_id)
        load = loads.popleft()
        if loads:
            self._waiting[client_id] = loads
        return load


def _run(load: _Load) -> None:
    try:
        load.future.set_result(load.prepare())
    except BaseException as error:  # it is its future's
        load.future.set_exception(error)


__all__ = ["PATIENCE_S", "LoadingLine"]
