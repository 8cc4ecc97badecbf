"""Adapter folders read in a process of their own, which may run out of time or memory, or die, without anybody noticing.

Whatever a folder does to its reader is that folder's refusal: the reader is ended and another one started for the next
folder. Several folders are read at once, each by its own reader, so that one that hangs does not hold up the others.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from evenflow.base.children import ChildProcess, error_from_name
from evenflow.base.errors import AdapterRejected, AdapterUnavailable
from evenflow.serving.adapters.adapter_files import FileState
from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.peft_reader import max_weights_bytes
from evenflow.serving.adapters.tensor_source import weights_file
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.layout import ArenaLayout

log = logging.getLogger("evenflow.lora")

READING_MODULE = "evenflow.serving.adapters.reading_process"
BYTES_PER_S = 50e6
"""A folder gets a second more for so many bytes of weights: a slow disk, read, summed, converted and written."""
_MAX_REPLY_BYTES = 1 << 20
_START_S = 60.0
"""For importing, once, on a machine that is busy."""
_FATAL_SIGNALS = (-4, -6, -7, -8, -11)
"""SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV: what was read did it. SIGKILL is the host's, or somebody's."""


class BoundedReading:
    """``AdapterReading``. ``timeout_s``: for a small folder. ``roots``: folders where any adapter's links may lead.

    ``base``: the base model's, with which some adapters are worked out.
    """

    def __init__(self, timeout_s: float, roots: Sequence[Path] = (), base: BaseWeights | None = None) -> None:
        self._timeout_s = timeout_s
        self._roots = tuple(roots)
        self._base = None if base is None else (base.folder, base.is_tied)
        self._idle: list[_Reader] = []
        self._busy: set[_Reader] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def read(self, path: Path, layout: ArenaLayout, max_lora_rank: int | None, allowed: Sequence[Path]) -> BoundedAdapter:
        """See AdapterReading."""
        bound = max_weights_bytes(layout.whole_shape, max_lora_rank)
        with contextlib.suppress(OSError):
            bound = min(bound, (path / weights_file(path)).stat().st_size)
        timeout_s = self._timeout_s + bound / BYTES_PER_S
        request = ("read", path, layout, max_lora_rank, (*allowed, *self._roots), bound, self._base)
        while True:
            reader, is_new = self._take()
            try:
                return BoundedAdapter(self, reader, path, timeout_s, reader.ask(request, path, timeout_s))
            except _ReaderGone as gone:
                self.drop(reader)
                if is_new:
                    raise gone.blame(path) from None
                # It may have died while it had nothing to do: another one shows whether it was this folder.
            except BaseException:
                self.give_back(reader)
                raise

    def close(self) -> None:
        """End every reader, busy ones too."""
        with self._lock:
            self._is_closed = True
            readers = [*self._idle, *self._busy]
            self._idle = []
        for reader in readers:
            reader.process.end()

    def give_back(self, reader: _Reader) -> None:
        """The reader has nothing to do; one that has ended is forgotten."""
        with self._lock:
            self._busy.discard(reader)
            if reader.process.is_alive and not self._is_closed:
                self._idle.append(reader)
                return
        reader.process.end()

    def drop(self, reader: _Reader) -> None:
        """The reader is of no more use."""
        reader.process.end()
        self.give_back(reader)

    def _take(self) -> tuple[_Reader, bool]:
        with self._lock:
            reader = self._idle.pop() if self._idle else None
            if reader is not None:
                self._busy.add(reader)
                return reader, False
        try:
            reader = _Reader()
        except OSError as error:
            raise AdapterUnavailable(f"adapters cannot be read now: no process can be started ({error.strerror})") from None
        with self._lock:
            self._busy.add(reader)
            is_closed = self._is_closed
        if is_closed:
            self.drop(reader)
            raise AdapterUnavailable("adapters cannot be read any more: the engine ends")
        return reader, True


class BoundedAdapter:
    """``ReadAdapter`` in a reader."""

    def __init__(self, reading: BoundedReading, reader: _Reader, path: Path, timeout_s: float, told: dict[str, Any]) -> None:
        self._reading = reading
        self._reader = reader
        self._path = path
        self._timeout_s = timeout_s
        self.digest = AdapterDigest(told["digest"])
        self.num_bytes: int = told["num_bytes"]
        self.base_model: str = told["base_model"]
        self.depends_on_base: bool = told["depends_on_base"]
        self.warnings: list[str] = told["warnings"]
        self.states: list[FileState] = told["states"]

    def write(self, path: Path, layout: str) -> None:
        """See ReadAdapter."""
        try:
            self._reader.ask(("write", path, layout), self._path, self._timeout_s)
        except _ReaderGone as gone:
            raise gone.blame(self._path) from None

    def __enter__(self) -> BoundedAdapter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        try:
            self._reader.ask(("drop",), self._path, self._timeout_s)
        except (_ReaderGone, AdapterRejected, AdapterUnavailable):
            self._reading.drop(self._reader)
        else:
            self._reading.give_back(self._reader)


class _ReaderGone(Exception):
    """The reader has ended, or does not answer as agreed."""

    def __init__(self, process: ChildProcess) -> None:
        super().__init__(process.ended_how)
        self._exit_code = process.exit_code or 0

    def blame(self, path: Path) -> Exception:
        """What to tell of the folder that was being read."""
        if self._exit_code in _FATAL_SIGNALS:
            return AdapterRejected(str(path), [f"whoever reads it ends with {self}"])
        return AdapterUnavailable(f"the process that was reading the adapter in {path} ended with {self}")


class _Reader:
    """One process that answers one JSON line per request."""

    def __init__(self) -> None:
        # One thread: the cores are the engine's. Nothing of it may be read by others, so no log but ours.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = ChildProcess(
            [sys.executable, "-m", READING_MODULE, str(os.getpid())],
            environment={**os.environ, **threads},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._rest = b""
        self._has_started = False

    def ask(self, request: tuple[Any, ...], path: Path, timeout_s: float) -> dict[str, Any]:
        """Send ``request`` and wait for its answer. ``path``: the folder that an answer that does not come is blamed on.

        Raises what the answer says, AdapterRejected or AdapterUnavailable if there is none, and _ReaderGone.
        """
        data = pickle.dumps(request)
        if not self._has_started:
            self._receive(_START_S)  # its greeting
            self._has_started = True
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(len(data).to_bytes(4, "little") + data)
            self.process.stdin.flush()
        except (OSError, ValueError):  # a pipe that is broken, or was closed when it ended
            self.process.end(1.0)
            raise _ReaderGone(self.process) from None
        used_s = self._processor_s()
        try:
            answer = json.loads(self._receive(timeout_s))
            if (more_bytes := answer.get("reads_base_bytes")) is not None:
                timeout_s += more_bytes / BYTES_PER_S
                answer = json.loads(self._receive(timeout_s))
        except TimeoutError:
            raise self._too_slow(path, timeout_s, self._processor_s() - used_s) from None
        if (name := answer.get("error_type")) is not None:
            raise error_from_name(name, answer["error"], answer["reasons"])
        return answer

    def _too_slow(self, path: Path, timeout_s: float, used_s: float) -> Exception:
        self.process.end()
        if used_s > timeout_s / 2:
            return AdapterRejected(str(path), [f"reading it takes longer than {timeout_s:.1f} s"])
        return AdapterUnavailable(f"the adapter in {path} could not be read within {timeout_s:.1f} s: the host is too slow now")

    def _receive(self, timeout_s: float) -> bytes:
        """One line. Raises TimeoutError, and _ReaderGone once it has ended or does not answer as agreed."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            if not waiting.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
                raise TimeoutError
            part = os.read(descriptor, 1 << 16)
            self._rest += part
            if not part or len(self._rest) > _MAX_REPLY_BYTES:
                self.process.end(1.0 if not part else 0.0)
                raise _ReaderGone(self.process)
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _processor_s(self) -> float:
        import psutil

        try:
            times = psutil.Process(self.process.pid).cpu_times()
            return times.user + times.system
        except psutil.Error:
            return 0.0


__all__ = ["BoundedAdapter", "BoundedReading"]
