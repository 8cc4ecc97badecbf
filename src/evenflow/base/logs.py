"""How log lines look and how they leave, in every process of a server.

Whoever started the server may not read what it writes. A full pipe would hold up whoever logs, and with it everybody
who is served; so lines are handed to a thread that may wait, and lines beyond a bound are dropped and counted.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
import time

from evenflow.base.json_lines import JsonFormatter

LOG_FORMATS = ("text", "json")
LOG_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
_MOST_LINES = 2000
"""Lines that wait to be written; what comes beyond them is lost, and said to be."""
_LAST_WORDS_S = 1.0


class PatientHandler(logging.Handler):
    """Writes lines to ``descriptor`` from a thread of its own. ``emit`` never waits."""

    def __init__(self, descriptor: int = 2) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(_MOST_LINES)
        self._num_lost = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._write, name="log", daemon=True)
            self._thread.start()
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._num_lost += 1

    def flush_within(self, timeout_s: float) -> bool:
        """Wait until everything is written, but not longer; False if nobody reads it."""
        deadline_s = time.monotonic() + timeout_s
        while self._lines.unfinished_tasks:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.002)
        return True

    def _before_line(self) -> str:
        """On a terminal a line takes the place of a progress bar, of this process or of another one."""
        return "\r\x1b[2K" if os.isatty(self._descriptor) else ""

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            try:
                if self._num_lost:
                    line += "\n" + self.format(_record(f"{self._num_lost} further lines were lost: nobody read the log"))
                    self._num_lost = 0
                data = (self._before_line() + line + "\n").encode("utf-8", "backslashreplace")
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                self._num_lost += 1
            finally:
                self._lines.task_done()


class PrintableFormatter(logging.Formatter):
    """One record is one line but for tracebacks: names that others chose can neither move the cursor nor forge a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line, its control characters shown as escapes."""
        return printable(super().formatMessage(record))


def printable(text: str) -> str:
    """``text`` with everything that is not printable escaped, line ends included."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def configure_logging(level: str, who: str = "", form: str = "text") -> None:
    """Send log lines of ``level`` ("info") and above to standard error, in a ``form`` of LOG_FORMATS, from ``who``."""
    root = logging.getLogger()
    if root.handlers:  # somebody else decides: a test, or the program that this one is a part of
        return
    root.setLevel(level.upper())
    root.addHandler(PatientHandler())
    use_log_format(form, who)
    atexit.register(flush_logs)


def use_log_format(form: str, who: str = "") -> None:
    """From now on, lines have the ``form``: text, each message behind ``who``, or json."""
    if form == "json":
        formatter: logging.Formatter = JsonFormatter(who)
        logging.captureWarnings(True)
    else:
        line = LOG_FORMAT.replace("%(message)s", who.replace("%", "%%") + "%(message)s")
        formatter = PrintableFormatter(line, "%H:%M:%S")
    for handler in _own_handlers():
        handler.setFormatter(formatter)


def is_json_log() -> bool:
    """True if this process writes its lines as JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in _own_handlers())


def flush_logs(timeout_s: float = _LAST_WORDS_S) -> bool:
    """Let what was logged be written before the process ends; False if nobody reads it within ``timeout_s``."""
    return all(handler.flush_within(timeout_s) for handler in _own_handlers())


def say(text: str, timeout_s: float = _LAST_WORDS_S) -> bool:
    """Print ``text`` to standard error behind what was logged; False if nobody reads it within ``timeout_s``.

    Where lines are JSON, it is one of them.
    """
    for handler in _own_handlers():
        if isinstance(handler.formatter, JsonFormatter):
            text = handler.format(_record(text, logging.ERROR))

    def write() -> None:
        print(text, file=sys.stderr, flush=True)

    flush_logs(timeout_s)
    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(timeout_s)
    return not writer.is_alive()


def _own_handlers() -> list[PatientHandler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, PatientHandler)]


def _record(text: str, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("evenflow", level, "", 0, text, (), None)
