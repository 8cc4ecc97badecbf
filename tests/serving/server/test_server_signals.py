"""A server process and its signals: drain, hurry, reload, and the end of its engine."""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server_fakes import make_adapter

from evenflow.access.keys import hash_key
from evenflow.base.errors import ConfigError
from evenflow.serving.server.run import run_server
from evenflow.serving.server.server_config import ServerConfig

pytestmark = pytest.mark.multiprocess
LONG = {"model": "base", "prompt": "x" * 100, "max_tokens": 500}


class Child:
    """The process, its log so far, and its address."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "server_child.py"), *arguments], stderr=subprocess.PIPE, text=True
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def wait_for(self, pattern: str, timeout_s: float = 20.0) -> re.Match[str]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for line in list(self.log):
                found = re.search(pattern, line)
                if found:
                    return found
            time.sleep(0.01)
        raise AssertionError(f"{pattern!r} is not in the log:\n{''.join(self.log)}")

    def client(self) -> httpx.Client:
        """A client of the server, once it is ready."""
        self.wait_for("ready:")
        return httpx.Client(base_url=self.url, timeout=30)

    @property
    def url(self) -> str:
        return self.wait_for(r"listening on (http://\S+)")[1]

    def wait(self) -> int:
        status = self.process.wait(20)
        self._reader.join(5)
        return status


@contextlib.contextmanager
def child(*arguments: str) -> Iterator[Child]:
    server = Child(*arguments)
    try:
        yield server
    finally:
        server.process.kill()
        server.wait()


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones():
    with child("", "20") as server, concurrent.futures.ThreadPoolExecutor() as pool:
        http = server.client()
        running = [pool.submit(http.post, "/v1/completions", json={**LONG, "stream": bool(s)}) for s in (0, 1)]
        while "in_flight 2.0" not in http.get("/metrics").text:
            assert not any(future.done() for future in running)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining: 2 requests")
        refused = http.post("/v1/completions", json=LONG)
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
        assert "retry-after" in refused.headers
        assert http.get("/ready").status_code == 503
        assert http.get("/health").status_code == 200
        answer = running[0].result().json()
        assert answer["choices"][0]["text"] == "[base] " + "x" * 100
        assert running[1].result().text.endswith("data: [DONE]\n\n")
        assert server.wait() == 0


def test_a_drain_that_takes_too_long_and_a_second_signal_cut_off():
    for drain_s, signals in (("0.2", [signal.SIGTERM]), ("60", [signal.SIGINT, signal.SIGINT])):
        with child("", drain_s) as server, concurrent.futures.ThreadPoolExecutor() as pool:
            http = server.client()
            body = {**LONG, "prompt": "x" * 3000, "max_tokens": 1000, "stream": True}
            running = pool.submit(http.post, "/v1/completions", json=body)
            while "in_flight 1.0" not in http.get("/metrics").text:
                assert not running.done()
            for number in signals:
                server.process.send_signal(number)
                server.wait_for("draining")
            server.wait_for("cut off")
            began_s = time.monotonic()
            assert server.wait() == 0
            assert time.monotonic() - began_s < 10
            with contextlib.suppress(httpx.HTTPError):
                assert not running.result().text.endswith("[DONE]\n\n")


def test_sighup_reads_clients_again_and_a_broken_file_changes_nothing(tmp_path):
    clients = tmp_path / "clients.toml"

    def write(*keys: str) -> None:
        clients.write_text("[clients.alice]\napi_keys = [" + ", ".join(f'"{hash_key(key)}"' for key in keys) + "]\n")

    write("old")
    with child(str(clients), "1") as server:
        http = server.client()

        def status(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            body = {"model": "base", "prompt": "x", "max_tokens": 1}
            return http.post("/v1/completions", json=body, headers=headers).status_code

        assert (status("old"), status("new")) == (200, 401)
        write("new")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("read .*clients.toml: 1 clients")
        assert (status("old"), status("new")) == (401, 200)
        clients.write_text("[clients.alice]\nwieght = 1\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("clients are as before.*wieght")
        assert status("new") == 200
        clients.unlink()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("clients are as before.*No such file")
        assert status("new") == 200


def test_the_server_ends_with_its_engine():
    with child("", "60") as server:
        refused = server.client().post("/v1/completions", json={"model": "base", "prompt": "die"})
        assert refused.status_code == 503
        assert server.wait() == 1
        assert "failed: the engine process ended with signal SIGKILL" in "".join(server.log)


def test_an_adapter_that_cannot_be_loaded_ends_the_start(tmp_path):
    with child("", "1", "bad", str(make_adapter(tmp_path, "bad", "bad"))) as server:
        assert server.wait() == 1
        assert "use_dora" in "".join(server.log)
        assert "Traceback" not in "".join(server.log)


def test_a_port_that_is_taken_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        from server_fakes import FakeEngine, FakeTokenizer

        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            run_server(FakeEngine, FakeTokenizer(), None, ServerConfig(port=port))
