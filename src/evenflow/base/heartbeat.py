"""Signs of life of a child process, so that its parent can tell a stuck one from a busy one.

A thread of the child writes a beat into a pipe twice a second: how far the watched thread has come, how much processor
time it has used, and whether it has finished starting. A pipe needs no disk, no port and no agreement about messages,
and neither end ever waits for the other: a full pipe loses beats, an empty one says that there were none.

    no beat                                          the process is stopped, starved or gone
    beats, no progress, no processor time used       stuck: it waits for something that does not come
    beats, no progress, processor time used          busy: a long step, or kernels being compiled
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable

_BEAT = struct.Struct("<QQB")
"""Progress, processor time in ns, 1 if it is serving."""
_INTERVAL_S = 0.5
_LONGEST_TICK_S = 2.0
"""A watcher that was not running itself (Ctrl-Z, a paused machine) has seen nothing, and holds nothing against the child."""
_BUSY_SHARE = 0.01
"""A thread that uses less of the processor than this does not compute: it polls."""
PATIENCE = 10
"""A step that uses the processor, and a start that does not, may take so many times the limit."""


class Heart:
    """The child's side: call ``advance`` whenever something was done, on the thread that made the heart."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._progress = 0
        self._is_serving = False
        self._processor_ns = _processor_clock()
        os.set_blocking(descriptor, False)

    def start(self) -> None:
        """Begin to beat, on a thread that ends with the process."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def advance(self) -> None:
        """Another round of the loop is done. Costs an addition."""
        self._progress += 1

    def is_ready(self) -> None:
        """The start is over; from now on a loop that stands still is stuck."""
        self._is_serving = True

    def _beat(self) -> None:
        while True:
            with contextlib.suppress(BlockingIOError):
                try:
                    os.write(self._descriptor, _BEAT.pack(self._progress, self._processor_ns(), self._is_serving))
                except BrokenPipeError:
                    return  # nobody watches any more
            time.sleep(_INTERVAL_S)


class Watchdog:
    """The parent's side. Call ``look`` a few times a second. ``limit_s``: 0 watches nothing."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_s = limit_s
        self._clock = clock
        self._reading, self.descriptor = os.pipe()
        os.set_blocking(self._reading, False)
        self._seen_s = clock()
        self._rest = b""
        self._progress, self._processor_ns, self._is_serving = -1, 0, False
        self._silent_s = self._still_s = self._step_s = 0.0
        self._lock = threading.Lock()

    def look(self) -> str | None:
        """What is wrong with the child, in words that fit behind its name, once the limit is passed; None if nothing is."""
        return self._fault(self.limit_s)

    def worry(self) -> str | None:
        """As ``look``, from half of the limit on: not yet a reason to end it, but one to send requests elsewhere."""
        return self._fault(self.limit_s / 2)

    def close_descriptor(self) -> None:
        """The child has its end now; this process does not need it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def close(self) -> None:
        """Give the pipe back. Idempotent."""
        self.close_descriptor()
        with self._lock:
            if self._reading >= 0:
                os.close(self._reading)
                self._reading = -1

    def _fault(self, limit_s: float) -> str | None:
        with self._lock:
            if not self.limit_s or self._reading < 0:
                return None
            self._listen()
        if self._silent_s > limit_s:
            return f"has given no sign of life for {self._silent_s:.0f} s"
        if self._is_serving and self._still_s > limit_s:
            return f"is stuck: for {self._still_s:.0f} s it has neither finished a step nor used the processor"
        if self._is_serving and self._step_s > PATIENCE * limit_s:
            return f"is stuck: one step has taken {self._step_s:.0f} s"
        if not self._is_serving and self._still_s > PATIENCE * limit_s:
            return f"is stuck: its start has stood still for {self._still_s:.0f} s"
        return None

    def _listen(self) -> None:
        now_s = self._clock()
        passed_s = min(now_s - self._seen_s, _LONGEST_TICK_S)
        self._seen_s = now_s
        self._silent_s += passed_s
        self._still_s += passed_s
        self._step_s += passed_s
        with contextlib.suppress(BlockingIOError):
            self._rest += os.read(self._reading, 1 << 16)
        whole = len(self._rest) - len(self._rest) % _BEAT.size
        if not whole:
            return
        progress, processor_ns, is_serving = _BEAT.unpack_from(self._rest, whole - _BEAT.size)
        self._rest = self._rest[whole:]
        self._silent_s = 0.0
        has_advanced = progress != self._progress or bool(is_serving) != self._is_serving
        if has_advanced:
            self._step_s = 0.0
        if has_advanced or processor_ns - self._processor_ns > _BUSY_SHARE * self._still_s * 1e9:
            self._still_s, self._processor_ns = 0.0, processor_ns
        self._progress, self._is_serving = progress, bool(is_serving)


def _processor_clock() -> Callable[[], int]:
    """Processor time of the calling thread in ns, readable from any thread; where there is no such clock, the process's."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.process_time_ns
    clock_id = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime_ns(clock_id)


__all__ = ["PATIENCE", "Heart", "Watchdog"]
