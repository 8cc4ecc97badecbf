"""The engine in a process of its own, as its parent holds it: started, spoken to and ended.

``python -m evenflow.serving.engine.child FOLDER`` is the child; ``EngineProcess`` is what the parent
holds. The two speak msgpack (messages.py) over one ZeroMQ PAIR socket in a private folder. The parent
may have imported torch or run event loops: none of that reaches the child, which is spawned, never
forked, with the thread settings of environment.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import zmq

from evenflow.base.children import error_from_name, exit_in_words, read_obituary
from evenflow.base.errors import EngineDead, EvenFlowError
from evenflow.serving.client.codec import encoder, from_engine_decoder, write_config
from evenflow.serving.client.environment import default_adapter_cache, engine_environment
from evenflow.serving.client.messages import Failed, FromEngine, Ready, Shutdown, ToEngine
from evenflow.serving.config.engine_config import EngineConfig

ENGINE_MODULE = "evenflow.serving.engine.child"
OBITUARY = "death.json"


class EngineProcess:
    """Parent's handle on one engine process: its socket's address and its life."""

    def __init__(self, config: EngineConfig) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="evenflow-"))
        self.address = f"ipc://{self._folder}/engine.sock"
        cache = config.adapter_cache or default_adapter_cache(os.environ)
        write_config(self._folder, replace(config, adapter_cache=cache))
        self._process = subprocess.Popen(
            [sys.executable, "-m", ENGINE_MODULE, str(self._folder)],
            env=engine_environment(config, os.environ),
            stdin=subprocess.DEVNULL,
        )

    @property
    def is_alive(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._process.pid

    def death(self) -> EvenFlowError:
        """The exception that tells how the process ended."""
        if (told := read_obituary(self._folder / OBITUARY)) is not None:
            return told
        how = exit_in_words(self._process.poll())
        return EngineDead(f"the engine process ended with {how}; no request can be served any more")

    def close(self, timeout_s: float = 5.0) -> None:
        """Wait for the process to end, then kill it. Call after Shutdown was sent. Idempotent."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class EngineConnection:
    """Synchronous end of the socket: for ``LLM``, command lines and tests."""

    def __init__(self, config: EngineConfig) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.set_hwm(0)
        self.process = EngineProcess(config)
        self._socket.bind(self.process.address)

    def send(self, message: ToEngine) -> None:
        """Queue one message for the engine. Raises what it died of, also while it is dying: nobody listens then."""
        data = encoder.encode(message)
        while self.process.is_alive:
            if self._socket.poll(200, zmq.POLLOUT):
                with contextlib.suppress(zmq.Again):
                    self._socket.send(data, zmq.NOBLOCK)
                    return
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
            if not self.process.is_alive and not self._socket.poll(0):
                raise self.process.death()
            if deadline is not None and time.monotonic() >= deadline:
                return None

    def wait_until_ready(self) -> Ready:
        """Block until the engine is warm. Raises what it died of."""
        while True:
            message = self.receive()
            if isinstance(message, Ready):
                return message

    def close(self) -> None:
        """End the process and the socket. Idempotent."""
        if self._socket.closed:
            return
        if self.process.is_alive:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send(encoder.encode(Shutdown()), zmq.NOBLOCK)
        self.process.close()
        self._socket.close(0)
        self._context.term()
