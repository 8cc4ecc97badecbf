"""Whatever fails, wherever: the server goes on serving everybody else, or ends within ten seconds with its reason.

Killed (SIGKILL), stopped (SIGSTOP), starved and corrupted: before it is ready, warm, under load and while it drains.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from safetensors.torch import load_file, save_file
from victim import ENDS_WITHIN_S, SMALL, Victim

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(400)]

QUICK_DOG = ("--watchdog", "4")
"""Long enough for a busy machine to start a process, short enough to be told within ten seconds."""
RANKS = ("-tp", "2")


def cut_short(model: Path) -> None:
    file = model / "model.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def without_a_layer(model: Path) -> None:
    file = model / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}, file)


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(), RANKS], ids=["one", "ranks"])
@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [(cut_short, "model.safetensors"), (without_a_layer, "layers.1.mlp"), (without_weights, "safetensors")],
)
def test_a_model_that_cannot_be_loaded(tiny_model, tmp_path, corrupt, reason, ranks):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    corrupt(model)
    with Victim(str(model), *SMALL, *ranks) as victim:
        began_s = wait_for_the_end(victim)
        victim.assert_ends(reason, began_s=began_s)


def wait_for_the_end(victim: Victim, timeout_s: float = 120.0) -> float:
    """When the engine had ended, or the server without having started one."""
    deadline_s = time.monotonic() + timeout_s
    has_engine = False
    while victim.process.poll() is None and time.monotonic() < deadline_s:
        running = [p for p in victim.processes() if is_engine(p)]
        has_engine = has_engine or bool(running)
        if has_engine and not running:
            break
        time.sleep(0.05)
    return time.monotonic()


def is_engine(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and "evenflow.serving.engine.child" in process.cmdline()
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--memory", "1KiB"), "memory is 1 KiB"),
        (("--memory", "900TiB"), "memory is 900 TiB"),
        (("--max-model-len", "999999"), "999999"),
        (("--adapter-cache", "/proc/none"), "adapter cache /proc/none cannot be used"),
        (("--adapter-cache", "/dev/null"), "adapter cache /dev/null cannot be used"),
        (("--cache-dir", "/proc/none"), "/proc/none"),
        (("--policy", "vtc-shared:redis://[::1"), "redis"),
    ],
)
def test_an_option_that_cannot_work(tiny_model, options, reason):
    with Victim(str(tiny_model), *SMALL, *options) as victim:
        began_s = wait_for_the_end(victim)
        victim.assert_ends(reason, began_s=began_s)


@pytest.mark.parametrize("variable", ["HOME", "TMPDIR"])
def test_no_place_to_write(tiny_model, variable):
    place = "/proc/none" if variable == "HOME" else "/tmp/" + "x" * 120
    if variable == "TMPDIR":
        Path(place).mkdir(exist_ok=True)
    with Victim(str(tiny_model), *SMALL, environment={variable: place, "XDG_CACHE_HOME": "", "NUMBA_CACHE_DIR": ""}) as victim:
        began_s = wait_for_the_end(victim)
        victim.assert_ends("/proc/none" if variable == "HOME" else "engine process cannot be started", began_s=began_s)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize("who", ["engine", "rank"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_lost_before_it_is_ready(tiny_model, who, number, when):
    with Victim(str(tiny_model), *SMALL, *QUICK_DOG, *(RANKS if who == "rank" else ())) as victim:
        process = getattr(victim, who)
        if when == "later":
            time.sleep(1.5)
        process.send_signal(number)
        victim.assert_ends("SIGKILL" if number == signal.SIGKILL else "no sign of life")


def test_an_engine_that_is_stopped_is_reported_and_ends_the_server(tiny_model):
    with Victim(str(tiny_model), *SMALL, "--watchdog", "4") as victim, victim.ready() as http:
        assert victim.complete(http).status_code == 200
        victim.engine.suspend()
        began_s = time.monotonic()
        while (answer := http.get("/health")).status_code == 200:
            assert time.monotonic() - began_s < 4
            time.sleep(0.05)
        assert "no sign of life" in answer.text
        victim.assert_ends("the engine process has given no sign of life", began_s=began_s)


def load(victim: Victim, http: httpx.Client, num_requests: int = 8) -> tuple[ThreadPoolExecutor, list]:
    """Long requests, streamed or not, that are all running or waiting when this returns."""
    pool = ThreadPoolExecutor(num_requests)
    body = {"max_tokens": 200, "ignore_eos": True}
    futures = [pool.submit(victim.complete, http, stream=bool(i % 2), **body) for i in range(num_requests)]
    deadline_s = time.monotonic() + 60
    while f"in_flight {num_requests}.0" not in http.get("/metrics").text and not all(f.done() for f in futures):
        assert time.monotonic() < deadline_s
    return pool, futures


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["warm", "load", "drain"])
@pytest.mark.parametrize("who", ["engine", "rank"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_lost_while_it_serves(tiny_model, who, number, stage):
    options = (*QUICK_DOG, *(RANKS if who == "rank" else ()), "--drain-timeout", "60")
    with Victim(str(tiny_model), *SMALL, *options) as victim, victim.ready() as http:
        pool, futures = load(victim, http) if stage != "warm" else (ThreadPoolExecutor(1), [])
        if stage == "drain":
            victim.process.send_signal(signal.SIGTERM)
            victim.wait_for("(draining)")
        getattr(victim, who).send_signal(number)
        victim.assert_ends("SIGKILL" if number == signal.SIGKILL else "no sign of life")
        for future in futures:  # everybody is told or cut off; nobody waits
            with contextlib.suppress(httpx.HTTPError):
                answer = future.result(5)
                assert answer.status_code in (200, 503)
        pool.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(), RANKS], ids=["one", "ranks"])
@pytest.mark.parametrize("stage", ["at once", "start", "warm", "load"])
def test_a_server_that_is_killed_leaves_nothing_behind(tiny_model, stage, ranks):
    with Victim(str(tiny_model), *SMALL, *ranks) as victim:
        assert victim.engine.is_running()
        if stage == "start":
            time.sleep(1.0)
        elif stage != "at once":
            http = victim.ready()
            if stage == "load":
                load(victim, http)
        victim.process.kill()
        victim.process.wait(10)
        victim.assert_nothing_left(ENDS_WITHIN_S)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["start", "load"])
def test_a_signal_ends_it_in_time_even_if_the_engine_does_not_listen(tiny_model, stage):
    with Victim(str(tiny_model), *SMALL, "--drain-timeout", "0") as victim:
        engine = victim.engine
        if stage == "load":
            load(victim, victim.ready())
        else:
            victim.wait_for("(listening)")
        engine.suspend()
        victim.process.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        assert victim.process.wait(20) == 0, victim.text
        assert time.monotonic() - began_s < 10
        victim.assert_nothing_left()


@pytest.mark.slow
def test_a_log_that_nobody_reads_holds_up_nobody(tiny_model):
    with Victim(str(tiny_model), *SMALL, "--adapter-dir", str(tiny_model.parent), is_heard=False) as victim:
        read, lines = victim.process.stderr, []
        assert read is not None
        while not any("listening" in line for line in lines):
            lines.append(read.readline())
        url = lines[-1].split()[-1]
        with httpx.Client(base_url=url, timeout=30) as http:
            deadline_s = time.monotonic() + 60
            while http.get("/ready").status_code != 200:
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            for i in range(1200):  # each is a line of the log of a hundred bytes and more; a pipe holds 64 KiB
                answer = http.post("/v1/load_lora_adapter", json={"lora_name": f"a{i}", "lora_path": str(tiny_model)})
                assert answer.status_code in (400, 404)
                victim.process.send_signal(signal.SIGHUP)
            assert victim.complete(http).status_code == 200
        victim.engine.kill()
        began_s = time.monotonic()
        assert victim.process.wait(20) == 1
        assert time.monotonic() - began_s < 10


@pytest.mark.slow
def test_a_full_disk_under_the_kernel_cache(tiny_model, tmp_path):
    small = tmp_path / "disk"
    small.mkdir()
    if os.getuid() or os.system(f"mount -t tmpfs -o size=64k tmpfs {small}"):
        pytest.skip("needs a disk of its own")
    try:
        options = ("--dtype", "float32", "--memory", "4MiB", "--cache-dir", str(small), "--adapter-cache", str(tmp_path / "a"))
        with Victim(str(tiny_model), *options, environment={"NUMBA_CACHE_DIR": ""}) as victim:
            began_s = wait_for_the_end(victim, 400)
            victim.assert_ends(str(small), began_s=began_s)
    finally:
        os.system(f"umount -l {small}")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["memory", "descriptors"])
def test_starved_of_what_it_needs_it_answers_or_ends(tiny_model, what):
    with Victim(str(tiny_model), *SMALL) as victim, victim.ready() as http:
        engine = victim.engine
        if what == "memory":
            used = engine.memory_info().vms
            psutil.Process(engine.pid).rlimit(psutil.RLIMIT_AS, (used, used))
        else:
            psutil.Process(engine.pid).rlimit(psutil.RLIMIT_NOFILE, (engine.num_fds(), engine.num_fds()))
        stop = threading.Event()
        statuses: list[int] = []

        def ask() -> None:
            while not stop.is_set():
                try:
                    statuses.append(victim.complete(http, prompt=list(range(200)), max_tokens=8).status_code)
                except httpx.HTTPError:
                    return

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(3)
        stop.set()
        asking.join(30)
        assert not asking.is_alive()
        if victim.process.poll() is None and victim.engine.is_running():
            assert statuses, "nobody was answered"
            assert set(statuses) <= {200, 503}
        else:
            victim.assert_ends("emory|descriptor|files|primitive")  # oneDNN has its own words for no memory
