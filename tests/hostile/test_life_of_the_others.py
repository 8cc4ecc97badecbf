"""What `test_life_and_death` leaves: the front itself, the readers of adapters, Redis, and a server that starts starved."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from victim import SMALL, Victim

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(400)]

LONG = {"max_tokens": 400, "ignore_eos": True}


def unread_stream(victim: Victim) -> socket.socket:
    """A stream whose caller reads nothing of it."""
    host, port = victim.url.removeprefix("http://").split(":")
    caller = socket.create_connection((host, int(port)))
    body = b'{"model": "base", "prompt": [5, 6, 7], "max_tokens": 400, "ignore_eos": true, "stream": true}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    caller.sendall(head.encode() + b"\r\n\r\n" + body)
    return caller


@contextlib.contextmanager
def under_load(victim: Victim, http: httpx.Client, num_requests: int = 6) -> Iterator[list[httpx.Response]]:
    """Long requests, streamed or not, while the block runs; then what was answered."""
    answers: list[httpx.Response] = []

    def ask(is_stream: bool) -> None:
        with contextlib.suppress(httpx.HTTPError):
            answers.append(victim.complete(http, stream=is_stream, **LONG))

    with ThreadPoolExecutor(num_requests) as pool:
        for i in range(num_requests):
            pool.submit(ask, bool(i % 2))
        deadline_s = time.monotonic() + 30
        while f"in_flight {num_requests}.0" not in http.get("/metrics").text:
            assert time.monotonic() < deadline_s
        yield answers


@contextlib.contextmanager
def loaded_if(is_loaded: bool, victim: Victim, http: httpx.Client, num_requests: int = 6) -> Iterator[list[httpx.Response]]:
    """``under_load``, or nothing at all."""
    if not is_loaded:
        yield []
        return
    with under_load(victim, http, num_requests) as answers:
        yield answers


def test_a_second_signal_cuts_off_what_runs_and_ends_in_words(tiny_model):
    with Victim(str(tiny_model), *SMALL, "--drain-timeout", "60") as victim, victim.ready() as http:
        with under_load(victim, http) as answers, unread_stream(victim):
            victim.process.send_signal(signal.SIGTERM)
            victim.wait_for("(draining)")
            for _ in range(3):
                victim.process.send_signal(signal.SIGTERM)
                time.sleep(0.02)
            began_s = time.monotonic()
            assert victim.process.wait(20) == 0, victim.text
            assert time.monotonic() - began_s < 5
        assert {answer.status_code for answer in answers} <= {200, 503}
        assert len(answers) == 6, "everybody is told"
        assert "Traceback" not in victim.text, victim.text
        victim.assert_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["start", "warm", "load"])
def test_a_server_that_is_stopped_for_longer_than_the_watchdog_goes_on(tiny_model, stage):
    """A laptop that sleeps, a debugger: the engine has lived on, and nobody is lost."""
    with Victim(str(tiny_model), *SMALL, "--watchdog", "2") as victim:
        assert victim.engine.is_running()
        stopped = psutil.Process(victim.process.pid)
        if stage == "start":
            stopped.suspend()
            time.sleep(4)
            stopped.resume()
        with victim.ready() as http:
            with loaded_if(stage == "load", victim, http) as answers:
                if stage != "start":
                    stopped.suspend()
                    time.sleep(4)
                    stopped.resume()
            assert victim.complete(http).status_code == 200
            assert all(answer.status_code == 200 for answer in answers)
            assert len(answers) == (6 if stage == "load" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reader_lost_before_the_server_is_ready(tiny_model, tiny_adapter, tmp_path, number):
    """It serves, or it ends with its reason; it does not wait for ever."""
    options = ("--adapters", f"neighbour={tiny_adapter}", "--adapter-load-timeout", "2", "--adapter-cache", str(tmp_path))
    with Victim(str(tiny_model), *SMALL, *options) as victim:
        victim.reader.send_signal(number)
        if not any("ready:" in line for line in wait_for_either(victim)):
            victim.assert_ends("neighbour|adapter", within_s=10)
            return
        with victim.ready() as http:
            assert victim.complete(http, "neighbour").status_code == 200


def wait_for_either(victim: Victim) -> list[str]:
    """Its log, once it is ready or has ended."""
    deadline_s = time.monotonic() + 60
    while victim.process.poll() is None and time.monotonic() < deadline_s:
        if any("ready:" in line for line in list(victim.log)):
            break
        time.sleep(0.05)
    return list(victim.log)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["warm", "load", "drain"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reader_lost_while_the_server_serves(tiny_model, tiny_adapter, tmp_path, number, stage):
    """Nobody who is served notices; the next adapter is read by another one, at once or once the time is up."""
    options = ["--adapters", f"neighbour={tiny_adapter}", "--adapter-load-timeout", "2", "--drain-timeout", "60"]
    options += ["--adapter-cache", str(tmp_path)]
    with Victim(str(tiny_model), *SMALL, *options) as victim, victim.ready() as http:
        reader = victim.reader

        def load(name: str) -> int:
            body = {"lora_name": name, "lora_path": str(tiny_adapter), "load_inplace": True}
            return http.post("/v1/load_lora_adapter", json=body).status_code

        with loaded_if(stage != "warm", victim, http, 4) as answers:
            if stage == "drain":
                victim.process.send_signal(signal.SIGTERM)
                victim.wait_for("(draining)")
            reader.send_signal(number)
            if stage != "drain":
                assert load("neighbour") in (200, 503)
                assert load("neighbour") == 200
                assert victim.complete(http, "neighbour").status_code == 200
        assert all(answer.status_code == 200 for answer in answers)
        assert len(answers) == (0 if stage == "warm" else 4)
        if stage == "drain":
            assert victim.process.wait(20) == 0
            victim.assert_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits", ["-n 8", "-n 12", "-n 20", "-n 28", "-n 36", "-n 48", "-v 400000", "-v 900000", "-v 1600000"]
)
@pytest.mark.parametrize("ranks", [(), ("-tp", "2")], ids=["one", "ranks"])
def test_a_server_that_starts_starved_serves_or_ends_with_its_reason(tiny_model, limits, ranks):
    with Victim(str(tiny_model), *SMALL, *ranks, limits=limits) as victim:
        began_s = time.monotonic()
        if any("ready:" in line for line in wait_for_either(victim)):
            with victim.ready() as http:
                assert victim.complete(http).status_code in (200, 503)
            return
        status = victim.process.wait(20)
        victim._reader.join(5)
        assert status not in (0, None), victim.text
        assert victim.text.strip(), f"no reason after {time.monotonic() - began_s:.1f} s"
        victim.assert_nothing_left()


@pytest.mark.slow
def test_a_front_without_descriptors_serves_again_once_it_has_some(tiny_model):
    with Victim(str(tiny_model), *SMALL) as victim, victim.ready() as http:
        assert victim.complete(http).status_code == 200
        server = psutil.Process(victim.process.pid)
        before = server.rlimit(psutil.RLIMIT_NOFILE)
        server.rlimit(psutil.RLIMIT_NOFILE, (server.num_fds(), before[1]))
        strangers = [socket.create_connection(tuple(_address(victim))) for _ in range(40)]
        assert victim.complete(http).status_code == 200, "whoever is connected is served"
        for stranger in strangers:
            stranger.close()
        server.rlimit(psutil.RLIMIT_NOFILE, before)
        deadline_s = time.monotonic() + 10
        while True:
            with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=victim.url, timeout=2) as other:
                if victim.complete(other).status_code == 200:
                    break
            assert time.monotonic() < deadline_s, victim.text


def _address(victim: Victim) -> tuple[str, int]:
    host, port = victim.url.removeprefix("http://").split(":")
    return host, int(port)


class Redis:
    """A redis-server of one's own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._folder = folder
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
@pytest.mark.parametrize("stage", ["start", "warm", "load", "drain"])
@pytest.mark.parametrize("what", ["kill", "stop", "starve", "corrupt"])
def test_redis_lost_or_unwell_is_noticed_by_nobody(tiny_model, tmp_path, what, stage):
    redis = Redis(tmp_path)

    def hurt() -> None:
        if what == "kill":
            redis.end()
        elif what == "stop":
            redis.process.send_signal(signal.SIGSTOP)
        else:
            time.sleep(0.2)
            words = ("CONFIG", "SET", "maxmemory", "1") if what == "starve" else ("CONFIG", "SET", "requirepass", "other")
            subprocess.run(["redis-cli", "-p", str(redis.port), *words], check=True, capture_output=True)

    try:
        if stage == "start":
            time.sleep(0.3)
            hurt()
        policy = f"vtc-shared:redis://127.0.0.1:{redis.port}/0"
        options = ("--policy", policy, "--drain-timeout", "60", "--watchdog", "5")
        with Victim(str(tiny_model), *SMALL, *options) as victim, victim.ready() as http:
            with loaded_if(stage in ("load", "drain"), victim, http, 4) as answers:
                if stage == "drain":
                    victim.process.send_signal(signal.SIGTERM)
                    victim.wait_for("(draining)")
                if stage != "start":
                    hurt()
                if stage != "drain":
                    for _ in range(3):
                        assert victim.complete(http).status_code == 200
            assert all(answer.status_code == 200 for answer in answers)
            if stage == "drain":
                assert victim.process.wait(30) == 0
    finally:
        redis.end()
