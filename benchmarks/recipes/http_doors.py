"""What an HTTP layer lets one hostile connection, or many, take: uvicorn's two parsers beside our own limits.

    python benchmarks/recipes/http_doors.py --json benchmarks/results/http_doors--MACHINE.json

Each layer serves the same empty application in a process of its own. Measured from outside: how much memory endless
headers take within two seconds (lines, and one value), whether connections that send nothing or a slow body are ever
closed, and how long a thousand plain requests take.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import uvicorn

from evenflow.bench.harness import write_result
from evenflow.serving.server.http.bounded_connection import ConnectionLimits, bounded_protocol
from evenflow.serving.server.http.connection_books import ConnectionBooks

LAYERS = ("uvicorn, httptools", "uvicorn, h11", "ours, on httptools")
FLOOD_S, PATIENCE_S, CONNECTIONS = 2.0, 6.0, 200
TIMEOUT_S = 3.0
"""Of headers and bodies in our layer, for this measurement; the server's defaults are longer."""


async def empty_app(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, answer nothing."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def serve(layer: str, port: int) -> None:
    """One layer, in a process of its own."""
    limits = ConnectionLimits(
        max_header_bytes=65536,
        max_headers=128,
        max_connections=4096,
        header_timeout_s=TIMEOUT_S,
        body_timeout_s=TIMEOUT_S,
        send_timeout_s=TIMEOUT_S,
    )
    protocol: Any = {"uvicorn, httptools": "httptools", "uvicorn, h11": "h11"}.get(layer)
    protocol = protocol or bounded_protocol(limits, ConnectionBooks())
    uvicorn.run(empty_app, host="127.0.0.1", port=port, http=protocol, ws="none", log_level="critical", lifespan="off")


class Layer:
    """A running layer and what is done to it."""

    def __init__(self, name: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=(name, self._port))
        self._process.start()
        while True:
            with contextlib.suppress(OSError), self.connect():
                break
            time.sleep(0.1)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_S)

    def rss_mib(self) -> float:
        return psutil.Process(self._process.pid).memory_info().rss / (1 << 20)

    def flood_mib(self, start: bytes, chunk: bytes) -> dict[str, float]:
        """Growth of memory, and what was taken, while ``chunk`` is sent over and over behind ``start``."""
        before, sent = self.rss_mib(), 0
        with self.connect() as line, contextlib.suppress(OSError):
            line.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n" + start)
            end_s = time.monotonic() + FLOOD_S
            while time.monotonic() < end_s:
                line.sendall(chunk)
                sent += len(chunk)
        return {"grown_mib": round(self.rss_mib() - before, 1), "taken_mib": round(sent / (1 << 20), 1)}

    def still_open(self, sent: bytes) -> int:
        """Of CONNECTIONS that send only this much, those that are open after PATIENCE_S."""
        lines = [self.connect() for _ in range(CONNECTIONS)]
        for line in lines:
            line.sendall(sent)
        time.sleep(PATIENCE_S)
        num_open = 0
        for line in lines:
            line.setblocking(False)
            try:
                while line.recv(65536):
                    pass
            except BlockingIOError:
                num_open += 1
            except OSError:
                pass
            line.close()
        return num_open

    def plain_s(self, count: int = 1000) -> float:
        """Of so many requests on one connection."""
        with self.connect() as line:
            started_s = time.monotonic()
            for _ in range(count):
                line.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                line.recv(4096)
            return time.monotonic() - started_s

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def fresh_flood_mib(name: str, start: bytes, chunk: bytes) -> dict[str, float]:
    """``Layer.flood_mib`` of a layer that has answered nothing else."""
    layer = Layer(name)
    try:
        return layer.flood_mib(start, chunk)
    finally:
        layer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    os.environ.pop("PYTHONSTARTUP", None)
    results: dict[str, Any] = {}
    times: dict[str, list[float]] = {name: [] for name in LAYERS}
    layers = {name: Layer(name) for name in LAYERS}
    try:
        for _ in range(5):
            for name, layer in layers.items():
                times[name].append(layer.plain_s())
        for name, layer in layers.items():
            results[name] = {
                "endless lines": fresh_flood_mib(name, b"", b"a: b\r\n" * 4000),
                "one endless value": fresh_flood_mib(name, b"x: ", b"v" * 16384),
                f"silent connections open after {PATIENCE_S:g} s, of {CONNECTIONS}": layer.still_open(b""),
                f"slow bodies open after {PATIENCE_S:g} s, of {CONNECTIONS}": layer.still_open(
                    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx"
                ),
                "1000 plain requests, seconds": round(statistics.median(times[name]), 3),
                "samples": [round(value, 4) for value in times[name]],
            }
            print(name, {key: value for key, value in results[name].items() if key != "samples"}, flush=True)
    finally:
        for layer in layers.values():
            layer.close()
    parameters = {"flood_s": FLOOD_S, "patience_s": PATIENCE_S, "our_timeouts_s": TIMEOUT_S}
    write_result(args.json, "http_doors", parameters, results)


if __name__ == "__main__":
    main()
