"""Child processes: started, watched, ended and collected in one place; and the word that one leaves of what it ended of.

A child that fails writes an obituary, a small JSON file with the name and the text of its exception, into a
folder that its parent knows. The parent rebuilds the exception from it, whatever became of their socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from evenflow.base import errors
from evenflow.base.errors import EvenFlowError
from evenflow.base.files import write_whole
from evenflow.base.heartbeat import Watchdog

_COLLECT_S = 2.0
"""How long a killed process may take to vanish: the kernel may still be waiting for a disk on its behalf."""


class ChildProcess:
    """One child process of this one. Nothing here waits without a limit, and whoever calls ``end`` leaves no zombie.

    ``command``: as for subprocess. ``watchdog``: its descriptor is inherited by the child under the same number, and it is
    told that the child's end of the pipe is out of this process's hands. ``is_leader``: the child gets a session and a
    process group of its own, and ``end`` ends the whole group. ``stdin``, ``stdout``, ``stderr``: as for subprocess;
    nothing is read from the terminal unless it is asked for. Raises OSError if it cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        watchdog: Watchdog | None = None,
        is_leader: bool = False,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
    ) -> None:
        self._is_leader = is_leader
        self._process = subprocess.Popen(
            list(command),
            env=None if environment is None else dict(environment),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=is_leader,
            pass_fds=() if watchdog is None else (watchdog.descriptor,),
        )
        self.stdin, self.stdout = self._process.stdin, self._process.stdout
        if watchdog is not None:
            watchdog.close_descriptor()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """True while it runs. The first call that returns False has collected it."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; as ``subprocess`` gives it: negative for a signal."""
        return self._process.poll()

    @property
    def ended_how(self) -> str:
        """For example "signal SIGKILL" or "exit status 3"; only once it has ended."""
        return exit_in_words(self.exit_code)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False if it still runs after ``timeout_s``."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, timeout_s))
        return not self.is_alive

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def end(self, grace_s: float = 0.0, *, is_asked: bool = False) -> bool:
        """Give it ``grace_s`` to end by itself, then kill it, stopped or not, and collect it. Idempotent.

        ``is_asked``: send SIGTERM first. Returns False if the kernel would not let go of it within two seconds more.
        """
        if is_asked and self.is_alive:
            self.send_signal(signal.SIGTERM)
        if not self.wait(grace_s) or self._is_leader:
            self._kill()
        is_gone = self.wait(_COLLECT_S)
        for stream in (self.stdin, self.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return is_gone

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._is_leader:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                self._process.kill()


def raise_file_limit() -> None:
    """Let this process have as many file handles as it is allowed to ask for: each running adapter and client takes one."""
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends, however that happens. Linux only; else nothing.

    ``parent_pid``: as the parent told it. A parent that ended while this process was starting will not be noticed any
    more, so this process ends at once.
    """
    with contextlib.suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def exit_in_words(code: int | None) -> str:
    """Return "signal SIGKILL" or "exit status 3" for a return code as ``subprocess`` gives it (negative: a signal)."""
    if code is not None and code < 0:
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"
    return f"exit status {code}"


def error_from_name(name: str | None, message: str, reasons: list[str] | None = None) -> EvenFlowError:
    """Return the exception called ``name`` in evenflow.base.errors, rebuilt on this side of a process border."""
    kind = getattr(errors, name or "", EvenFlowError)
    error: EvenFlowError = kind.__new__(kind)
    Exception.__init__(error, message)
    if isinstance(error, errors.AdapterRejected):
        error.reasons, error.where = tuple(reasons or ()), ""
    elif isinstance(error, errors.InvalidRequest):
        error.param = None
    elif isinstance(error, errors.Rejected):
        error.retry_after_s = 1.0
        if isinstance(error, errors.SLOUnreachable):
            error.predicted_ttft_s = 0.0
    return error


def write_obituary(path: Path, error: EvenFlowError) -> None:
    """Leave word at ``path`` of what this process is about to end of. Nothing happens if the disk or the folder refuse."""
    with contextlib.suppress(OSError):
        write_whole(path, json.dumps({"error_type": type(error).__name__, "error": str(error)}))


def read_obituary(path: Path, where: str = "") -> EvenFlowError | None:
    """Return the exception that a child left at ``path``, its text behind ``where``; None if it left none."""
    try:
        said = json.loads(path.read_text())
        return error_from_name(said["error_type"], where + said["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
