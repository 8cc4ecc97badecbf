"""The engine in a process of its own: how it is started, spoken to and ended.

``python -m evenflow.serving.client.process SOCKET`` is the child; ``EngineProcess`` is what the parent
holds. The two speak msgpack (messages.py) over one ZeroMQ PAIR socket in a private folder. The parent
may have imported torch or run event loops: none of that reaches the child, which is spawned, never
forked, with the thread settings of environment.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import zmq

import evenflow.base.errors as errors
from evenflow.base.errors import EngineDead, EvenFlowError
from evenflow.base.openmp import share_openmp
from evenflow.serving.client.environment import default_adapter_cache, engine_environment
from evenflow.serving.client.messages import Failed, FromEngine, Ready, Shutdown, ToEngine
from evenflow.serving.config.engine_config import EngineConfig

_DEATH = "death.json"
LOG_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"

encoder = msgspec.msgpack.Encoder()
from_engine_decoder = msgspec.msgpack.Decoder(FromEngine)
to_engine_decoder = msgspec.msgpack.Decoder(ToEngine)


def error_from_name(name: str | None, message: str, reasons: list[str] | None = None) -> EvenFlowError:
    """The exception called ``name`` in evenflow.base.errors, rebuilt on this side of the border."""
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


class EngineProcess:
    """Parent's handle on one engine process: its socket's address and its life."""

    def __init__(self, config: EngineConfig) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="evenflow-"))
        self.address = f"ipc://{self._folder}/engine.sock"
        cache = config.adapter_cache or default_adapter_cache(os.environ)
        (self._folder / "config.json").write_text(json.dumps(asdict(replace(config, adapter_cache=cache)), default=str))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evenflow.serving.client.process", str(self._folder)],
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
        report = self._folder / _DEATH
        if report.exists():
            said = json.loads(report.read_text())
            return error_from_name(said["error_type"], said["error"])
        code = self._process.poll()
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
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


def write_death(folder: Path, error: EvenFlowError) -> None:
    """Leave word of what the engine process is about to end of, for a parent whose socket nobody can write to."""
    temporary = folder / f"{_DEATH}.tmp"
    temporary.write_text(json.dumps({"error_type": type(error).__name__, "error": str(error)}))
    temporary.replace(folder / _DEATH)


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, however that happens."""
    with contextlib.suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def read_config(folder: Path) -> EngineConfig:
    """The EngineConfig that the parent wrote."""
    fields = json.loads((folder / "config.json").read_text())
    return EngineConfig(**fields)


def main(folder: Path) -> int:
    """Run the engine until it is told to stop or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent drains first, then sends Shutdown
    parent = os.getppid()
    die_with_parent()
    share_openmp()
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.setsockopt(zmq.LINGER, 2000)
    socket.connect(f"ipc://{folder}/engine.sock")
    try:
        from evenflow.serving.engine.loop import EngineLoop

        config = read_config(folder)
        logging.basicConfig(level=config.log_level.upper(), format=LOG_FORMAT, datefmt="%H:%M:%S")
        loop = EngineLoop(config, socket, is_orphan=lambda: os.getppid() != parent, folder=folder)
        loop.run()
    except Exception as error:
        import traceback

        if not isinstance(error, EvenFlowError):
            logging.getLogger("evenflow").error("the engine ends:\n%s", traceback.format_exc())
        name = type(error).__name__ if isinstance(error, EvenFlowError) else "EngineDead"
        text = str(error) if isinstance(error, EvenFlowError) else f"{type(error).__name__}: {error}"
        socket.send(encoder.encode(Failed(name, text)))
        return 1
    finally:
        socket.close()
        context.term()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
