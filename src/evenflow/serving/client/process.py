"""The engine in a process of its own, as its parent holds it: started, spoken to and ended.

``python -m evenflow.serving.engine.child FOLDER HEARTBEAT PARENT`` is the child; ``EngineProcess`` is what the parent
holds. The two speak msgpack (messages.py) over one ZeroMQ PAIR socket in a private folder. The parent
may have imported torch or run event loops: none of that reaches the child, which is spawned, never
forked, with the thread settings of environment.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import zmq

from evenflow.base.children import ChildProcess, error_from_name, read_obituary
from evenflow.base.errors import ConfigError, EngineDead, EvenFlowError
from evenflow.base.heartbeat import Watchdog
from evenflow.serving.client.codec import encoder, from_engine_decoder, write_config
from evenflow.serving.client.environment import default_adapter_cache, engine_environment, kernel_cache, make_private
from evenflow.serving.client.messages import Failed, FromEngine, Ready, Shutdown, ToEngine
from evenflow.serving.config.engine_config import EngineConfig

ENGINE_MODULE = "evenflow.serving.engine.child"
OBITUARY = "death.json"


STOP_S = 5.0
"""How long an engine that was told to stop may take to finish its step."""
_LAST_STACKS_S = 0.5


class EngineProcess:
    """Parent's handle on one engine process: its socket's address and its life.

    ``bind`` is given the address before the process starts. Raises ConfigError if the process cannot be started here;
    nothing is left behind then.
    """

    def __init__(self, config: EngineConfig, bind: Callable[[str], object]) -> None:
        self._process: ChildProcess | None = None
        self._watchdog: Watchdog | None = None
        self._folder: Path | None = None
        self._death: EvenFlowError | None = None
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="evenflow-"))
            self._watchdog = Watchdog(config.watchdog_s)
            cache = config.adapter_cache or default_adapter_cache(os.environ)
            make_private(kernel_cache(config, os.environ), "--cache-dir")
            write_config(self._folder, replace(config, adapter_cache=cache))
            bind(f"ipc://{self._folder}/engine.sock")
            self._process = ChildProcess(
                [sys.executable, "-m", ENGINE_MODULE, str(self._folder), str(self._watchdog.descriptor), str(os.getpid())],
                environment=engine_environment(config, os.environ),
                watchdog=self._watchdog,
            )
        except (OSError, zmq.ZMQError) as error:
            self.close(0.0)
            raise ConfigError(f"the engine process cannot be started: {error.strerror or error}") from None
        except BaseException:
            self.close(0.0)
            raise

    @property
    def is_alive(self) -> bool:
        """True while the process runs."""
        return self._process is not None and self._process.is_alive

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        assert self._process is not None
        return self._process.pid

    @property
    def trouble(self) -> str | None:
        """What seems to be wrong with a process that runs, half of ``watchdog_s`` before it is ended for it; None: nothing."""
        worry = None if self._watchdog is None else self._watchdog.worry()
        return None if worry is None else f"the engine process {worry}"

    def end_if_stuck(self) -> None:
        """End the process if the watchdog has given it up; ``death`` then says why. Call it a few times a second."""
        fault = self._watchdog.look() if self._watchdog is not None and self.is_alive else None
        if fault is None or self._process is None:
            return
        self._death = EngineDead(f"the engine process {fault}; it is ended, and no request can be served any more")
        self._process.send_signal(signal.SIGUSR1)  # its threads' stacks go to the log, if it still can
        self._process.end(_LAST_STACKS_S)

    def death(self) -> EvenFlowError:
        """The exception that tells how the process ended."""
        if self._death is not None:
            return self._death
        if self._folder is not None and (told := read_obituary(self._folder / OBITUARY)) is not None:
            return told
        how = "nothing started" if self._process is None else self._process.ended_how
        return EngineDead(f"the engine process ended with {how}; no request can be served any more")

    def close(self, timeout_s: float = STOP_S) -> None:
        """Wait for the process to end, then kill it. Call after Shutdown was sent. Idempotent, and never without a limit."""
        if self._process is not None:
            self._process.end(timeout_s)
        if self._watchdog is not None:
            self._watchdog.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class EngineConnection:
    """Synchronous end of the socket: for ``LLM``, command lines and tests."""

    def __init__(self, config: EngineConfig) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.set_hwm(0)
        self._is_ready = False
        try:
            self.process = EngineProcess(config, self._socket.bind)
        except BaseException:
            self._socket.close(0)
            self._context.term()
            raise

    def send(self, message: ToEngine) -> None:
        """Queue one message for the engine. Raises what it died of, also while it is dying: nobody listens then."""
        data = encoder.encode(message)
        while self.process.is_alive:
            if self._socket.poll(200, zmq.POLLOUT):
                with contextlib.suppress(zmq.Again):
                    self._socket.send(data, zmq.NOBLOCK)
                    return
            self.process.end_if_stuck()
        raise self.process.death()

    def receive(self, timeout_s: float | None = None) -> FromEngine | None:
        """Next message, or None after ``timeout_s``. Raises EngineDead if the process has ended, or what it died of."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            wait_s = 0.5 if deadline is None else max(0.0, min(0.5, deadline - time.monotonic()))
            if self._socket.poll(int(wait_s * 1000)):
                message = from_engine_decoder.decode(self._socket.recv())
                if isinstance(message, Failed):
                    raise error_from_name(message.error_type, message.error)
                return message
            self.process.end_if_stuck()
            if not self.process.is_alive and not self._socket.poll(0):
                raise self.process.death()
            if deadline is not None and time.monotonic() >= deadline:
                return None

    def wait_until_ready(self) -> Ready:
        """Block until the engine is warm. Raises what it died of."""
        while True:
            message = self.receive()
            if isinstance(message, Ready):
                self._is_ready = True
                return message

    def close(self) -> None:
        """End the process and the socket. Idempotent."""
        if self._socket.closed:
            return
        if self.process.is_alive:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send(encoder.encode(Shutdown()), zmq.NOBLOCK)
        self.process.close(STOP_S if self._is_ready else 0.0)  # one that still starts does not listen
        self._socket.close(0)
        self._context.term()
