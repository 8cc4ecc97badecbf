"""A server as a child process, ``evenflow serve`` or another: started, waited for, and always ended.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

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


class HttpServerProcess:
    """A server that listens on 127.0.0.1; use it as a context manager.

    ``command`` begins with its program, and is followed by ``--host`` and ``--port``. ``log`` receives what it writes.
    It is ready when ``ready_path`` answers 200. ``environment``: None is this process's.
    """

    def __init__(
        self, command: Sequence[str], log: Path, *, ready_path: str = "/ready", environment: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self.log = log
        self._command = [*command, "--host", "127.0.0.1", "--port", str(self.port)]
        self._ready_path = ready_path
        self._environment = environment
        self._process: ChildProcess | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = ChildProcess(
                self._command, environment=self._environment, stdout=log, stderr=subprocess.STDOUT, is_leader=True
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def wait_ready(self, timeout_s: float, waiting: Callable[[float], None] = lambda _: None) -> float:
        """Wait until the server is ready; return the seconds it took.

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
                    if http.get(self._ready_path).status_code == 200:
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


class ServerProcess(HttpServerProcess):
    """``evenflow serve`` with these arguments."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        super().__init__([sys.executable, "-m", "evenflow.cli.main", "serve", *arguments], log)


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
