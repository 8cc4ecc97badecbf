"""A real ``evenflow serve`` as a child process: started, waited for, and always ended.

The child gets a process group of its own, so that Ctrl-C in the terminal reaches this process alone, which then
ends the whole group in order: the server first asks its engine to stop, and whatever is left is killed.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType

import httpx

from evenflow.base.children import ChildProcess
from evenflow.base.errors import ConfigError

_STOP_S = 8.0
"""How long a server may take to end by itself."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


class ServerProcess:
    """A running server; use it as a context manager.

    ``arguments`` follow ``evenflow serve``; host and port are added. ``log`` receives what the server writes.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.port = free_port()
        self.log = log
        self._arguments = list(arguments)
        self._process: ChildProcess | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ServerProcess:
        command = [sys.executable, "-m", "evenflow.cli.main", "serve", *self._arguments]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        with self.log.open("wb") as log:
            self._process = ChildProcess(command, stdout=log, stderr=subprocess.STDOUT, is_leader=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def wait_ready(self, timeout_s: float, waiting: Callable[[float], None] = lambda _: None) -> float:
        """Wait until the server answers /ready with 200; return the seconds it took.

        ``waiting`` is called with the seconds so far, a few times a second. Raises ConfigError, with the end of the
        server's log, if it ends before or takes longer than ``timeout_s``.
        """
        assert self._process is not None, "the server is started by `with`"
        began = time.monotonic()
        with httpx.Client(base_url=self.url, timeout=2.0) as http:
            while True:
                passed = time.monotonic() - began
                if not self._process.is_alive:
                    how = self._process.ended_how
                    raise ConfigError(f"the server ended with {how} before it was ready:\n{self.log_tail()}")
                if passed > timeout_s:
                    raise ConfigError(f"the server was not ready after {timeout_s:.0f} s:\n{self.log_tail()}")
                with contextlib.suppress(httpx.HTTPError):
                    if http.get("/ready").status_code == 200:
                        return passed
                waiting(passed)
                time.sleep(0.1)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the server's log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def stop(self) -> None:
        """End the server and everything it started. A second call does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        with _uninterrupted():
            process.end(_STOP_S, is_asked=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a second Ctrl-C not leave processes behind."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread: no signal arrives here
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, so that children are ended on it too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
