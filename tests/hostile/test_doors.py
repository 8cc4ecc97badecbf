"""Connections that mean no good: what each may take is bounded, and everybody else is answered meanwhile."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "serving" / "server"))

from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer

from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig

TEXT = {"model": "base", "prompt": "hi"}
LIMITS = {
    "max_header_bytes": 4096,
    "max_headers": 20,
    "max_connections": 30,
    "header_timeout_s": 0.4,
    "body_timeout_s": 0.4,
    "send_timeout_s": 0.4,
    "max_unread_bytes": 1 << 16,
}
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@contextlib.contextmanager
def serving(engine: FakeEngine | None = None, **config: object) -> Iterator[LiveServer]:
    app = create_app(engine or FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(**{**LIMITS, **config}))
    with LiveServer(app) as server:
        yield server
        assert server.http.post("/v1/completions", json=TEXT).status_code == 200, "everybody else is still answered"


@contextlib.contextmanager
def connected(server: LiveServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
        yield line


def rest(line: socket.socket) -> bytes:
    """Everything until the server closes."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while chunk := line.recv(65536):
            got += chunk
    return got


def send_until_closed(line: socket.socket, chunk: bytes, most: int) -> int:
    """Send ``chunk`` again and again; how many bytes went out before the server had enough of it."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < most:
            line.sendall(chunk)
            sent += len(chunk)
    return sent


def closed(server: LiveServer, reason: str) -> int:
    return server.state.connections.num_closed[reason]


@pytest.mark.parametrize(
    "chunk",
    [b"x-%d: y\r\n" % 7 * 100, b"x" * 1000, b"a: " + b"b" * 1000],
    ids=["endless lines", "endless name", "endless value"],
)
def test_headers_without_an_end(chunk):
    with serving() as server, connected(server) as line:
        line.sendall(b"GET /health HTTP/1.1\r\n" + (b"x: " if chunk[:1] == b"x" and b":" not in chunk else b""))
        assert send_until_closed(line, chunk, 64 << 20) < 16 << 20
        assert closed(server, "header_size") == 1


def test_many_short_headers_are_431_although_they_are_few_bytes():
    with serving() as server, connected(server) as line:
        line.sendall(b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 25 + b"\r\n")
        assert rest(line).startswith(b"HTTP/1.1 431 ")
        assert server.http.get("/health", headers={f"x-{i}": "y" for i in range(10)}).status_code == 200


def test_trailers_and_chunk_extensions_without_an_end():
    for chunk in (b"x: y\r\n" * 100, b"y" * 1000):
        with serving() as server, connected(server) as line:
            line.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: ")
            assert send_until_closed(line, chunk, 64 << 20) < 16 << 20


def test_a_body_in_chunks_of_one_byte_is_read():
    body = json.dumps({**TEXT, "prompt": "x" * 200, "max_tokens": 3}).encode()
    with serving() as server, connected(server) as line:
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
        line.sendall(HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        assert rest(line).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: x\r\n"])
def test_headers_that_do_not_come(sent):
    with serving() as server, connected(server) as line:
        line.sendall(sent)
        started_s = time.monotonic()
        answer = rest(line)
        assert 0.3 < time.monotonic() - started_s < 3
        assert answer.startswith(b"HTTP/1.1 408 " if sent else b"")
        assert closed(server, "header_time") == 1


def test_headers_that_come_byte_by_byte_are_not_waited_for_longer():
    with serving() as server, connected(server) as line:
        started_s = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /health HTTP/1.1\r\n" + b"a" * 500:
                line.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - started_s < 3


def test_bodies_that_do_not_come():
    with serving() as server:
        lines = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(20)]
        for line in lines:
            line.sendall(HEAD + b'content-length: 1000\r\n\r\n{"model"')
        assert server.http.post("/v1/completions", json=TEXT).status_code == 200
        assert all(rest(line).startswith(b"HTTP/1.1 408 ") for line in lines)
        for line in lines:
            line.close()
        assert closed(server, "body_time") == 20
        server.wait_for(lambda: server.state.connections.num_open <= 2)


def test_more_connections_than_allowed_are_told_so():
    with serving() as server:
        lines = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(30)]
        server.wait_for(lambda: server.state.connections.num_open == 30)
        with connected(server) as line:
            answer = rest(line)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        for line in lines:
            line.close()
        server.wait_for(lambda: server.state.connections.num_open == 0)
        assert closed(server, "too_many") == 1


def test_a_stream_that_nobody_reads_is_given_up():
    class Talker(FakeEngine):
        def answer(self, submit):
            return "hi" if len(submit.prompt_token_ids) < 10 else "talk" * 100_000

    engine = Talker(max_model_len=1 << 20)
    body = json.dumps({"model": "base", "prompt": "x" * 20, "max_tokens": 400_000, "stream": True}).encode()
    with serving(engine) as server, connected(server) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        server.wait_for(lambda: closed(server, "unread") + closed(server, "send_time") >= 1, 20)
        server.wait_for(lambda: not engine.running)
        assert engine.aborted, "the engine was told to stop"
        server.wait_for(lambda: server.state.num_in_flight == 0)


def test_requests_behind_one_another_are_few():
    engine = FakeEngine()
    engine.gate.clear()
    body = json.dumps(TEXT).encode()
    request = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    with serving(engine) as server:
        with connected(server) as line:
            send_until_closed(line, request * 50, 8 << 20)
            assert rest(line) == b""
        engine.gate.set()


def test_what_is_packed_small_may_not_unpack_large():
    bomb = gzip.compress(b'{"prompt": "' + b"x" * (8 << 20) + b'"}')
    with serving(max_body_bytes=1 << 20) as server:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        answer = server.http.post("/v1/completions", content=bomb, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        for broken in (bomb[:100], b"not gzip", gzip.compress(b"{}")[:-4]):
            assert server.http.post("/v1/completions", content=broken, headers=headers).status_code == 415


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": [' + b'"",' * 2_000_000 + b'""]}',
        b'{"prompt": "x", "knob": [' + b"1," * 2_000_000 + b"1]}",
        b'{"prompt": "x"' + b"".join(b', "k%d": 1' % i for i in range(300_000)) + b"}",
        b'{"prompt": "x", "messages": [' + b'{"a":0},' * 300_000 + b"0]}",
    ],
    ids=["prompts", "unknown list", "unknown fields", "objects"],
)
def test_bodies_of_very_many_values_are_refused_and_nobody_waits(body):
    with serving() as server:
        server.http.get("/health")
        started_s = time.monotonic()
        answer = server.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert "allowed" in answer.json()["error"]["message"]
        assert time.monotonic() - started_s < 5
