"""Two servers on one adapter cache that is too small for both: nobody loses rows in use, and full disks are said."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from victim import SMALL, Victim

from evenflow.base.errors import AdapterCacheFull
from evenflow.serving.adapters.row_store import RowStore
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.model_config import parse_config
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import TINY

pytestmark = pytest.mark.multiprocess

CONFIG = parse_config(TINY)
LAYOUT = ArenaLayout(CONFIG.shape, 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [make_adapter(root / f"a{i}", CONFIG, lora_rank=4, seed=i) for i in range(12)]


def one_adapter_bytes(folder: Path, tmp_path: Path) -> int:
    file = RowStore(tmp_path / "probe", LAYOUT).prepare(folder, None)
    return file.path.stat().st_size


HOLDER = """
    import sys, time
    from pathlib import Path
    from evenflow.serving.adapters.row_store import RowStore
    from evenflow.serving.memory.layout import ArenaLayout
    from evenflow.serving.models.model_config import parse_config
    from evenflow.serving.models.random.random_model import TINY
    cache, capacity, *folders = sys.argv[1:]
    store = RowStore(Path(cache), ArenaLayout(parse_config(TINY).shape, 4), capacity_bytes=int(capacity))
    files = [store.prepare(Path(folder), None) for folder in folders]
    assert all(file.hold() for file in files)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_holds_is_never_deleted_and_is_free_when_it_dies(folders, tmp_path):
    size = one_adapter_bytes(folders[0], tmp_path)
    cache, capacity = tmp_path / "cache", int(3.5 * size)
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(cache), str(capacity), str(folders[0]), str(folders[1])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        store = RowStore(cache, LAYOUT, capacity_bytes=capacity)
        held = {path.name for path in cache.rglob("*.rows")}
        for folder in folders[2:8]:  # only one more fits: each takes the place of the one before
            store.prepare(folder, None)
            assert held <= {path.name for path in cache.rglob("*.rows")}
        mine = store.prepare(folders[2], None)
        assert mine.hold()
        with pytest.raises(AdapterCacheFull):
            store.prepare(folders[3], None)
        mine.let_go()
        holder.kill()
    store.prepare(folders[3], None)
    store.prepare(folders[4], None)
    store.prepare(folders[5], None)
    assert len(held & {path.name for path in cache.rglob("*.rows")}) < 2


def test_rows_that_are_deleted_while_they_are_open_can_still_be_read(folders, tmp_path):
    store = RowStore(tmp_path / "cache", LAYOUT)
    file = store.prepare(folders[0], None)
    assert file.hold()
    file.path.unlink()  # by hand: no lock was asked for
    assert not file.is_gone
    page = np.empty((1, LAYOUT.page_bytes), np.uint8)
    file.read(0, [page])
    file.let_go()
    file.close()
    assert file.is_gone
    assert not file.hold()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_servers_on_one_small_cache_serve_all_they_have(tiny_model, tmp_path):
    """Every answer is right; no 404 for an adapter that is there, no 5xx but the documented 503 of a full cache."""
    from evenflow.serving.models.model_config import load_config

    config = load_config(tiny_model)
    root = tmp_path / "adapters"
    for i in range(12):
        make_adapter(root / f"a{i}", config, lora_rank=4, seed=i)
    probe = RowStore(tmp_path / "probe", ArenaLayout(config.shape, 4)).prepare(root / "a0", None)
    size = probe.path.stat().st_size
    options = ("--adapter-dir", str(root), "--adapter-cache", str(tmp_path / "cache"), "--adapter-cache-size", str(5 * size))
    body = {"prompt": list(range(5, 25)), "max_tokens": 6, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    with Victim(str(tiny_model), *SMALL, *options) as one, Victim(str(tiny_model), *SMALL, *options) as two:
        clients = [one.ready(), two.ready()]
        expected: dict[str, list[int]] = {}
        for i in range(12):
            answer = one.complete(clients[0], f"a{i}", **body)
            assert answer.status_code == 200, answer.text
            expected[f"a{i}"] = answer.json()["choices"][0]["token_ids"]
        assert len({tuple(tokens) for tokens in expected.values()}) == 12
        refused: list[httpx.Response] = []
        lock = threading.Lock()

        def ask(number: int) -> None:
            name, client = f"a{number * 7 % 12}", clients[number % 2]
            answer = (one, two)[number % 2].complete(client, name, **body)
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["token_ids"] == expected[name]
            else:
                with lock:
                    refused.append(answer)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(300)))
        codes = sorted({answer.json()["error"]["code"] for answer in refused})
        print(f"{len(refused)} of 300 refused: {codes}")
        assert set(codes) <= {"adapter_cache_full"}, [answer.text for answer in refused[:3]]
        assert len(refused) <= 15
        assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.rows")) <= 7 * size


@pytest.mark.slow
def test_a_full_disk_is_the_hosts_fault_and_passes(tiny_model, tmp_path):
    small = tmp_path / "disk"
    small.mkdir()
    if os.getuid() or os.system(f"mount -t tmpfs -o size=4m tmpfs {small}"):
        pytest.skip("needs a disk of its own")
    from evenflow.serving.models.model_config import load_config

    root = tmp_path / "adapters"
    make_adapter(root / "a", load_config(tiny_model), lora_rank=4)
    try:
        options = ("--adapter-dir", str(root), "--adapter-cache", str(small / "cache"))
        with Victim(str(tiny_model), *SMALL, *options) as victim, victim.ready() as http:
            _fill(small / "filler")
            answer = victim.complete(http, "a")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_unavailable"), answer.text
            assert "retry-after" in answer.headers
            assert victim.complete(http, "base").status_code == 200
            (small / "filler").unlink()
            time.sleep(1.1)
            assert victim.complete(http, "a").status_code == 200
    finally:
        os.system(f"umount -l {small}")


def _fill(path: Path) -> None:
    """Until not a byte more fits."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
