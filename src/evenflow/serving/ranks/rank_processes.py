"""The other tensor-parallel ranks, as rank 0 holds them: started, told, watched and ended.

Each is a process of its own (``rank``), spawned with the engine's thread settings. Plans go over one ZeroMQ PAIR socket
per rank, on the engine's thread; adapters over another, on whichever thread prepares them. A rank that ends before it is
told to ends the engine: what it held is gone. So does one that stands still. The engine's thread may be idle or stuck in a
collective then, so a watching thread gives it two seconds to come out by itself and ends the process if it does not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import zmq

from evenflow.base.children import ChildProcess, error_from_name, read_obituary, write_obituary
from evenflow.base.errors import AdapterError, EngineDead, EvenFlowError, WireError
from evenflow.base.heartbeat import Watchdog
from evenflow.base.logs import flush_logs
from evenflow.serving.client.codec import write_config
from evenflow.serving.client.environment import engine_environment
from evenflow.serving.client.process import OBITUARY
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.adapter import AdapterRecord
from evenflow.serving.core.plan import StepPlan
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.ranks.rank_messages import (
    Forget,
    Prepare,
    Refused,
    Stop,
    answer_decoder,
    encode_step,
    encoder,
    loaded_decoder,
)

log = logging.getLogger("evenflow.engine")

RANK_MODULE = "evenflow.serving.ranks.rank"
_GRACE_S = 2.0
"""How long the engine's thread gets to find out by itself that a rank is gone."""
_STOP_S = 3.0


class RankProcesses:
    """Ranks 1 to N - 1. Plans and ``close`` on the engine's thread; ``prepare`` on any.

    ``folder``: of an engine process. If a rank dies and the engine's thread does not notice, what became of it is
    written there (its obituary) and the process ends. None: an engine inside the caller's process; it is left alone.
    """

    def __init__(self, config: EngineConfig, folder: Path | None = None) -> None:
        self._engine_folder = folder
        self.folder = Path(tempfile.mkdtemp(prefix="evenflow-ranks-" if folder is None else "ranks-", dir=folder))
        write_config(self.folder, config)
        self._context = zmq.Context()
        self._plans: list[zmq.Socket] = []
        self._adapters: list[zmq.Socket] = []
        self._adapters_lock = threading.Lock()
        self._discarded: list[str] = []
        self._processes: list[ChildProcess] = []
        self._watchdogs: list[Watchdog] = []
        self._death: EvenFlowError | None = None
        self._is_dead = threading.Event()
        self._is_noticed = threading.Event()
        self._is_closing = False
        environment = engine_environment(config, os.environ)
        for rank in range(1, config.tensor_parallel):
            for kind, sockets in (("plans", self._plans), ("adapters", self._adapters)):
                socket = self._context.socket(zmq.PAIR)
                socket.setsockopt(zmq.LINGER, 0)
                socket.set_hwm(0)
                socket.bind(f"ipc://{self.folder}/{kind}{rank}")
                sockets.append(socket)
            watchdog = Watchdog(config.watchdog_s)
            self._watchdogs.append(watchdog)
            command = [
                sys.executable,
                "-m",
                RANK_MODULE,
                str(self.folder),
                str(rank),
                str(watchdog.descriptor),
                str(os.getpid()),
            ]
            self._processes.append(ChildProcess(command, environment=environment, watchdog=watchdog))
        self._watcher = threading.Thread(target=self._watch, name="rank-watcher", daemon=True)
        self._watcher.start()

    @property
    def pids(self) -> list[int]:
        """Process ids of ranks 1, 2, ..."""
        return [process.pid for process in self._processes]

    def wait_until_started(self) -> None:
        """Return when every rank is about to meet the others: whoever waits for one that never comes waits for ever."""
        for socket in self._plans:
            self._receive(socket)

    def run_step(self, plan: StepPlan) -> None:
        """Have every rank compute ``plan``; returns at once."""
        message = encode_step(plan)
        for socket in self._plans:
            socket.send(message)

    def prepare(self, path: Path, record: AdapterRecord, *, boundary: Path | None = None, must_read: bool = False) -> None:
        """Have every rank lay out its shard of the adapter at ``path``; see Catalog.prepare.

        Raises what a rank refuses it for, AdapterError if one found other weights there, EngineDead if one is gone.
        """
        inside = "" if boundary is None else str(boundary.absolute())
        with self._adapters_lock:
            discarded, self._discarded = self._discarded, []
            for socket in self._adapters:
                socket.send(encoder.encode(Prepare(str(path.absolute()), discarded, must_read, inside)))
            answers = [answer_decoder.decode(self._receive(socket)) for socket in self._adapters]
        for rank, answer in enumerate(answers, 1):
            if isinstance(answer, Refused):
                raise error_from_name(answer.error_type, answer.error, answer.reasons)
            if answer.digest != record.digest:
                raise AdapterError(
                    f"the adapter at {path} changed while it was read: rank {rank} found other weights; load it again"
                )
            assert answer.num_pages == record.num_pages, "ranks disagree about an adapter's pages"

    def forget(self, digest: AdapterDigest) -> None:
        """No plan will load this adapter again."""
        for socket in self._plans:
            socket.send(encoder.encode(Forget(digest)))

    def discard(self, digest: AdapterDigest) -> None:
        """Its rows are damaged on some rank: all make them again at the next ``prepare``."""
        self._discarded.append(digest)

    def failed_loads(self) -> dict[AdapterDigest, str]:
        """What could not be loaded in the step that is being computed, on any of these ranks. After a plan with loads only."""
        failed: dict[AdapterDigest, str] = {}
        for rank, socket in enumerate(self._plans, 1):
            loaded = loaded_decoder.decode(self._receive(socket))
            failed |= {AdapterDigest(digest): f"rank {rank}: {why}" for digest, why in loaded.failed.items()}
        return failed

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Whatever fails inside because a rank is gone is raised as what became of that rank."""
        try:
            yield
        except Exception as error:
            if self._is_dead.wait(_GRACE_S if isinstance(error, WireError) else 0.2):
                self._is_noticed.set()
                assert self._death is not None
                raise self._death from error
            raise

    def check(self) -> None:
        """Raise what became of a rank, if one is gone."""
        if self._is_dead.is_set():
            self._is_noticed.set()
            assert self._death is not None
            raise self._death

    def close(self) -> None:
        """End every rank. Idempotent."""
        if self._is_closing:
            return
        self._is_closing = True
        for socket in self._plans:
            with contextlib.suppress(zmq.ZMQError):
                socket.send(encoder.encode(Stop()), zmq.NOBLOCK)
        deadline_s = time.monotonic() + (_STOP_S if self._death is None else 0.1)
        for process in self._processes:
            process.end(deadline_s - time.monotonic())
        self._watcher.join(_STOP_S)
        for watchdog in self._watchdogs:
            watchdog.close()
        with self._adapters_lock:
            for socket in (*self._plans, *self._adapters):
                socket.close(0)
        self._context.term()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _receive(self, socket: zmq.Socket) -> bytes:
        while not socket.poll(200):
            self.check()
            if self._is_closing:
                raise EngineDead("the engine is shutting down")
        return socket.recv()

    def _watch(self) -> None:
        while not self._is_closing:
            stuck = self._stuck()
            if (stuck is not None or not all(process.is_alive for process in self._processes)) and not self._is_closing:
                time.sleep(0.1)  # one that fails takes others along; the first cause is wanted
                self._death = stuck or self._cause()
                self._is_dead.set()
                log.error("%s", self._death)
                if not self._is_noticed.wait(_GRACE_S) and not self._is_closing and self._engine_folder is not None:
                    write_obituary(self._engine_folder / OBITUARY, self._death)
                    flush_logs()
                    os._exit(1)
                return
            time.sleep(0.1)

    def _stuck(self) -> EvenFlowError | None:
        """What is wrong with a rank that runs but does nothing."""
        for rank, watchdog in enumerate(self._watchdogs, 1):
            if (fault := watchdog.look()) is not None and self._processes[rank - 1].is_alive:
                return EngineDead(f"{self._name(rank)} {fault}; no request can be served any more")
        return None

    def _name(self, rank: int) -> str:
        return f"tensor-parallel rank {rank} of {len(self._processes) + 1} (process {self._processes[rank - 1].pid})"

    def _cause(self) -> EvenFlowError:
        """Of the ranks that have ended: a signal first, then an error of its own, then a link that broke."""
        found: list[tuple[int, EvenFlowError]] = []
        world_size = len(self._processes) + 1
        for rank, process in enumerate(self._processes, 1):
            if process.is_alive:
                continue
            error = read_obituary(self.folder / f"failed{rank}.json", f"rank {rank} of {world_size}: ")
            if error is not None:
                found.append((2 if isinstance(error, WireError) else 1, error))
            else:
                how = f"{self._name(rank)} ended with {process.ended_how}"
                found.append((0, EngineDead(f"{how}; no request can be served any more")))
        return min(found, key=lambda entry: entry[0])[1]


__all__ = ["RankProcesses"]
