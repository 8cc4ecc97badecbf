"""Child processes: bound to their parent's life, and the word that one leaves of what it ended of.

A child that fails writes an obituary, a small JSON file with the name and the text of its exception, into a
folder that its parent knows. The parent rebuilds the exception from it, whatever became of their socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
from pathlib import Path

from evenflow.base import errors
from evenflow.base.errors import EvenFlowError
from evenflow.base.files import write_whole


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, however that happens. Linux only; else nothing."""
    with contextlib.suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


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
    """Leave word at ``path`` of what this process is about to end of, for a parent whose socket nobody can write to."""
    write_whole(path, json.dumps({"error_type": type(error).__name__, "error": str(error)}))


def read_obituary(path: Path, where: str = "") -> EvenFlowError | None:
    """Return the exception that a child left at ``path``, its text behind ``where``; None if it left none."""
    if not path.exists():
        return None
    said = json.loads(path.read_text())
    return error_from_name(said["error_type"], where + said["error"])
