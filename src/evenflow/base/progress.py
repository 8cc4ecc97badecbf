"""How far long work has come: a bar on a terminal, a plain line now and then everywhere else.

Whoever works is given a ``Tell`` and knows no more: ``tell("loading weights", 3, 30)``. Short work says nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TextIO

from evenflow.base.logs import is_json_log, printable

Tell = Callable[[str, float, float], None]
"""(what is being done, how much of it is done, how much there is; 0: nobody knows)."""

CLEAR = "\r\x1b[2K"
"""Takes a bar off its line of the terminal."""
QUIET_S = 0.5
"""Work that is over sooner has no bar."""
REDRAW_S = 0.1
LINE_EVERY_S = 5.0
_WIDTH = 24
_LONGEST = 60


def tell_nobody(what: str, done: float, total: float) -> None:
    """Nobody wants to know."""


class Teller(Protocol):
    """A ``Tell`` that is opened and closed: a context manager whose value is called."""

    def __call__(self, what: str, done: float, total: float) -> None:
        """So much is done."""
        ...

    def __enter__(self) -> Teller: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class BarTeller:
    """One bar on ``stream``, a terminal, drawn over itself and taken away at the end."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._began_s = clock()
        self._drawn_s: float | None = None

    def __call__(self, what: str, done: float, total: float) -> None:
        """See ``Teller``."""
        now_s = self._clock()
        is_too_early = now_s - self._began_s < QUIET_S if self._drawn_s is None else now_s - self._drawn_s < REDRAW_S
        if is_too_early:
            return
        self._drawn_s = now_s
        part = min(1.0, done / total) if total > 0 else 0.0
        bar = "#" * round(_WIDTH * part)
        self._stream.write(f"{CLEAR}{printable(what)[:_LONGEST]} [{bar:.<{_WIDTH}}] {_counted(done, total)}")
        self._stream.flush()

    def __enter__(self) -> BarTeller:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._drawn_s is not None:
            self._stream.write(CLEAR)
            self._stream.flush()


class LineTeller:
    """A line through ``say`` every few seconds, and one at the end of what had lines; nothing of what is soon over."""

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._told_s = clock()
        self._told_of = ""

    def __call__(self, what: str, done: float, total: float) -> None:
        """See ``Teller``."""
        now_s = self._clock()
        is_end = 0 < total <= done and self._told_of == what
        if now_s - self._told_s < LINE_EVERY_S and not is_end:
            return
        self._told_s, self._told_of = now_s, "" if is_end else what
        self._say(f"{printable(what)}: {_counted(done, total)}" if total > 0 else f"{printable(what)} ...")

    def __enter__(self) -> LineTeller:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to take away."""


def find_teller(say: Callable[[str], object], stream: TextIO | None = None) -> Teller:
    """A bar if ``stream`` (standard error) is a terminal and lines of the log are for people; else lines through ``say``."""
    where = sys.stderr if stream is None else stream
    return BarTeller(where) if where is not None and where.isatty() and not is_json_log() else LineTeller(say)


def _counted(done: float, total: float) -> str:
    if total <= 0:
        return ""
    percent = f"{100 * min(1.0, done / total):.0f} %"
    return f"{done:g} of {total:g} ({percent})" if float(done).is_integer() and float(total).is_integer() else percent


__all__ = ["BarTeller", "LineTeller", "Tell", "Teller", "find_teller", "tell_nobody"]
