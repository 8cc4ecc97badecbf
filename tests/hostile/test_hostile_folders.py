"""Folders that strangers made: each is judged by itself, and whoever is served meanwhile does not notice."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import statistics
import threading
import time
from pathlib import Path

import httpx
import pytest
from hostile_folders import Hostile, build, folders
from hypothesis import HealthCheck, Phase, given, settings
from victim import SMALL, Victim

from evenflow.base.errors import AdapterError, AdapterNotFound, AdapterRejected, AdapterUnavailable
from evenflow.serving.adapters.bounded_reading import BoundedReading
from evenflow.serving.adapters.peft_format import CONFIG_FILE, WEIGHTS_FILE
from evenflow.serving.adapters.reading import InProcessReading
from evenflow.serving.adapters.row_store import RowStore
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.model_config import parse_config
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import TINY

pytestmark = pytest.mark.multiprocess

CONFIG = parse_config(TINY)
LAYOUT = ArenaLayout(CONFIG.shape, 4)
DRAWN = settings(
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MANY = int(os.environ.get("EVENFLOW_HOSTILE_FOLDERS", "2000"))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("good") / "adapter", CONFIG, lora_rank=3, seed=1)


@pytest.fixture(scope="module")
def reading():
    reading = BoundedReading(0.8)
    yield reading
    reading.close()


def read(reading, folder: Path, allowed: tuple[Path, ...] = (), max_lora_rank: int | None = None) -> str:
    with reading.read(folder, LAYOUT, max_lora_rank, allowed) as adapter:
        return adapter.digest


def test_a_reader_gives_what_reading_here_gives(reading, good, tmp_path):
    here, there = InProcessReading().read(good, LAYOUT, None, ()), reading.read(good, LAYOUT, None, ())
    with here, there:
        assert (there.digest, there.num_bytes, there.base_model) == (here.digest, here.num_bytes, here.base_model)
        assert there.states == here.states
        here.write(tmp_path / "here", "layout")
        there.write(tmp_path / "there", "layout")
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


@given(hostile=folders)
@settings(DRAWN, max_examples=60)
def test_whatever_a_folder_holds_is_an_adapter_or_its_refusal(reading, good, tmp_path_factory, hostile):
    folder = build(hostile, tmp_path_factory.mktemp("hostile") / "adapter", good)
    expected = read(reading, good)
    try:
        read(reading, folder)
    except (AdapterRejected, AdapterNotFound, AdapterUnavailable) as error:
        told = str(error).replace(str(folder), "")
        assert told.isprintable()
        assert len(told) < 12_000
        assert "root:" not in told, "it quotes a foreign file"
    assert read(reading, good) == expected
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("hostile", "says"),
    [
        (Hostile(config={"target_modules": "(.|.)*!"}), "longer than|slow"),
        (Hostile(special=(WEIGHTS_FILE, "sparse")), "bytes; allowed"),
        (Hostile(special=(WEIGHTS_FILE, "fifo")), "not an ordinary file"),
        (Hostile(special=(CONFIG_FILE, "device")), "not an ordinary file"),
        (Hostile(special=(CONFIG_FILE, "etc")), "adapter_config.json is a link that leads out of the adapter's folder"),
        (Hostile(special=(WEIGHTS_FILE, "neighbour")), "safetensors is a link that leads out of the adapter's folder"),
        (Hostile(special=(WEIGHTS_FILE, "loop")), "levels of symbolic links"),
        (Hostile(raw_config=b"[" * 200_000), "nested too deeply"),
        (Hostile(header="many"), "tensors; allowed|longer than|too slow"),
        (Hostile(weights="nan"), "down_proj.lora_A.weight holds NaN or infinity"),
        (Hostile(config={"init_lora_weights": "lora_ga"}), "changes the base weights"),
    ],
)
def test_what_was_seen_in_the_field(reading, good, tmp_path, hostile, says):
    folder = build(hostile, tmp_path / "adapter", good)
    began_s = time.monotonic()
    with pytest.raises(AdapterError, match=says):
        read(reading, folder)
    assert time.monotonic() - began_s < 6


def test_links_that_platforms_make_are_followed(reading, good, tmp_path):
    expected = read(reading, good)
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "9f"  # a hub cache's
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    mount = tmp_path / "mount"  # Kubernetes'
    shutil.copytree(good, mount / "..2026")
    (mount / "..data").symlink_to("..2026")
    own = tmp_path / "root" / "org" / "name"  # something of the same first folder
    shared = tmp_path / "root" / "org" / "shared"
    shutil.copytree(good, shared)
    for folder, targets in ((snapshot, "../../blobs"), (mount, "..data"), (own, "../shared")):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if folder == snapshot:
                shutil.copy(good / name, blobs / name)
            (folder / name).symlink_to(f"{targets}/{name}")
    assert read(reading, snapshot) == read(reading, mount) == expected
    assert read(reading, own, (tmp_path / "root" / "org",)) == expected
    with pytest.raises(AdapterRejected, match="leads out"):
        read(reading, own)
    (blobs / WEIGHTS_FILE).unlink()
    (blobs / WEIGHTS_FILE).symlink_to(shared / WEIGHTS_FILE)  # a blob is no way out either
    with pytest.raises(AdapterRejected, match="leads out"):
        read(reading, snapshot)


def test_one_that_hangs_does_not_hold_up_another(good, tmp_path):
    reading = BoundedReading(3.0)
    slow = build(Hostile(config={"target_modules": "(.*.*.*.*.*.*.*)*x"}), tmp_path / "slow", good)
    read(reading, good)
    outcome: list[BaseException] = []

    def hang() -> None:
        try:
            read(reading, slow)
        except BaseException as error:
            outcome.append(error)

    hanging = threading.Thread(target=hang)
    began_s = time.monotonic()
    hanging.start()
    read(reading, good)
    assert hanging.is_alive()
    assert time.monotonic() - began_s < 3.0
    hanging.join(10)
    assert isinstance(outcome[0], AdapterRejected | AdapterUnavailable)
    reading.close()


def test_a_reader_that_is_killed_is_replaced_and_the_folder_is_not_blamed(reading, good, tmp_path):
    expected = read(reading, good)
    for reader in reading._idle:
        os.kill(reader.process.pid, signal.SIGKILL)
    assert read(reading, good) == expected
    with reading.read(good, LAYOUT, None, ()) as adapter:
        [busy] = reading._busy
        os.kill(busy.process.pid, signal.SIGKILL)
        with pytest.raises(AdapterUnavailable, match="SIGKILL"):
            adapter.write(tmp_path / "rows", "layout")
    assert not reading._busy
    assert read(reading, good) == expected


def test_a_full_disk_and_no_descriptors_are_the_hosts_fault(reading, good, tmp_path):
    with reading.read(good, LAYOUT, None, ()) as adapter, pytest.raises(AdapterUnavailable, match="No space left on device"):
        _write_to_a_full_disk(adapter, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cold = BoundedReading(5.0)
    number_of_open = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (number_of_open, hard))
    try:
        with pytest.raises(AdapterUnavailable, match="Too many open files"):
            read(cold, good)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    cold.close()


def _write_to_a_full_disk(adapter, tmp_path: Path) -> None:
    small = tmp_path / "full"
    small.mkdir()
    if os.getuid() or os.system(f"mount -t tmpfs -o size=4k tmpfs {small}"):
        pytest.skip("needs a disk of its own")
    try:
        adapter.write(small / "rows", "layout")
    finally:
        os.system(f"umount -l {small}")


def test_same_size_and_times_but_other_weights(good, tmp_path):
    """A reproducible image gives every file the same times; an explicit load looks at what it holds."""
    folder = shutil.copytree(good, tmp_path / "adapter")
    store = RowStore(tmp_path / "cache", LAYOUT)

    def at_one_time() -> None:
        for file in folder.iterdir():
            os.utime(file, ns=(10**18, 10**18))
        time.sleep(0.03)

    at_one_time()
    before = store.prepare(folder, None).header.record.digest
    make_adapter(folder, CONFIG, lora_rank=3, seed=2)
    at_one_time()
    after = store.prepare(folder, None, must_read=True).header.record.digest
    assert before != after
    assert store.prepare(folder, None).header.record.digest == after


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_neighbour_is_served_rightly_and_in_time_meanwhile(tiny_model, tiny_adapter, tmp_path_factory):
    """2,000 hostile folders against a live server: right answers, p99 at most doubled, one engine throughout."""
    root = tmp_path_factory.mktemp("strangers")
    options = (*SMALL, "--adapters", f"neighbour={tiny_adapter}", "--adapter-load-timeout", "1")
    with Victim(str(tiny_model), *options) as victim, victim.ready() as http:
        engine = victim.engine.pid
        body = {"prompt": list(range(5, 45)), "max_tokens": 16, "temperature": 0, "ignore_eos": True, "return_token_ids": True}

        def ask() -> tuple[float, list[int]]:
            began_s = time.monotonic()
            answer = victim.complete(http, "neighbour", **body)
            assert answer.status_code == 200, answer.text
            return time.monotonic() - began_s, answer.json()["choices"][0]["token_ids"]

        _, expected = ask()
        alone = [ask()[0] for _ in range(300)]
        beside: list[float] = []
        statuses: dict[int, int] = {}
        stop = threading.Event()
        wrong: list[object] = []

        def neighbour() -> None:
            while not stop.is_set():
                try:
                    took_s, tokens = ask()
                except (AssertionError, httpx.HTTPError) as error:
                    wrong.append(error)
                    return
                beside.append(took_s)
                if tokens != expected:
                    wrong.append(tokens)

        @given(hostile=folders)
        @settings(DRAWN, max_examples=MANY)
        def attack(hostile: Hostile) -> None:
            name = f"h{sum(statuses.values())}"
            folder = build(hostile, root / name, tiny_adapter)
            answer = http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)})
            assert answer.status_code in (200, 400, 404, 503), answer.text
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            if answer.status_code == 200:
                used = victim.complete(http, name, max_tokens=2)
                assert used.status_code < 500 or used.status_code == 503, used.text
                http.post("/v1/unload_lora_adapter", json={"lora_name": name})
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)

        asking = threading.Thread(target=neighbour)
        asking.start()
        attack()
        stop.set()
        asking.join(60)
        assert not wrong, wrong[:3]
        assert victim.engine.pid == engine
        p99 = [statistics.quantiles(times, n=100)[98] for times in (alone, beside)]
        print(f"{statuses}; p99 alone {p99[0] * 1e3:.1f} ms, beside {p99[1] * 1e3:.1f} ms over {len(beside)} answers")
        assert p99[1] <= 2 * p99[0] + 0.002
