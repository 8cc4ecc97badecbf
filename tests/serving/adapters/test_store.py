"""Converted once, found again, checked at every read, made again when lost, and never larger than allowed."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from evenflow.base.errors import AdapterCacheFull, AdapterDamaged, AdapterError, AdapterNotFound, AdapterRejected, ConfigError
from evenflow.serving.adapters import reading
from evenflow.serving.adapters import row_file as rows_module
from evenflow.serving.adapters.catalog import Catalog
from evenflow.serving.adapters.row_file import RowFile, open_rows
from evenflow.serving.adapters.row_store import RowStore, layout_fingerprint
from evenflow.serving.core.shard import Shard
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.model_config import parse_config
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import TINY

CONFIG = parse_config(TINY)
LAYOUT = ArenaLayout(CONFIG.shape, 4)


def age(folder, seconds=60):
    """Make files look as if they had been written earlier: time stamps of the last seconds are not trusted."""
    for file in folder.iterdir():
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns - int(seconds * 1e9)))
    time.sleep(0.025)  # the system's own time stamps cannot be set back


def image_of(file):
    image = np.empty((file.header.record.num_pages, file.header.page_bytes), np.uint8)
    file.read(0, [image])
    return image


@pytest.fixture
def adapter(tmp_path):
    folder = make_adapter(tmp_path / "adapter", CONFIG, lora_rank=3, seed=1)
    age(folder)
    return folder


@pytest.fixture
def reads(monkeypatch):
    """How often a PEFT folder was read."""
    count = []
    real = reading.read_adapter
    monkeypatch.setattr(reading, "read_adapter", lambda *a: (count.append(a), real(*a))[1])
    return count


def test_rows_are_those_of_the_image_and_a_second_start_reads_no_adapter(tmp_path, adapter, reads):
    expected = Catalog(LAYOUT)
    digest = expected.register("a", adapter)
    for start in range(2):
        file = RowStore(tmp_path / "cache", LAYOUT).prepare(adapter, None)
        assert file.header.record == expected.record(digest)
        assert file.header.target_modules == expected.target_modules(digest)
        np.testing.assert_array_equal(image_of(file), expected.image(digest))
        assert len(reads) == 1, f"start {start}"
        assert not file.is_open or file.close() is None


def test_parts_of_an_image_go_to_scattered_buffers(tmp_path, adapter):
    file = RowStore(tmp_path / "cache", LAYOUT).prepare(make_adapter(adapter, CONFIG, lora_rank=8), None)
    whole = image_of(file)
    assert len(whole) >= 6
    parts = [np.zeros_like(whole[:2]), np.zeros_like(whole[:1]), np.zeros_like(whole[:2])]
    file.read(1, parts)
    np.testing.assert_array_equal(np.concatenate(parts), whole[1:6])


@pytest.mark.parametrize("how", ["weights", "touched", "young"])
def test_a_folder_that_may_have_changed_is_read_again(tmp_path, adapter, reads, how):
    store = RowStore(tmp_path / "cache", LAYOUT)
    before = store.prepare(adapter, None).header.record.digest
    if how == "weights":
        make_adapter(adapter, CONFIG, lora_rank=3, seed=2)
    elif how == "touched":
        (adapter / "adapter_config.json").touch()
    else:  # changed so shortly before it was read that a second change could bear the same time
        (adapter / "adapter_config.json").touch()
        store.prepare(adapter, None)
    num_reads = len(reads)
    assert (store.prepare(adapter, None).header.record.digest == before) == (how != "weights")
    assert len(reads) == num_reads + 1


def test_what_becomes_of_the_folder_does_not_matter_once_it_is_read(tmp_path, adapter):
    catalog = Catalog(LAYOUT, store=RowStore(tmp_path / "cache", LAYOUT))
    digest = catalog.register("a", adapter)
    before = catalog.image(digest)
    with (adapter / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(100)
    np.testing.assert_array_equal(catalog.image(digest), before)
    for file in adapter.iterdir():
        file.unlink()
    np.testing.assert_array_equal(catalog.image(digest), before)
    with pytest.raises(AdapterNotFound):
        catalog.prepare(adapter)


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, empty, os.remove])
@pytest.mark.parametrize("is_open", [False, True])
def test_damaged_rows_are_an_error_and_never_a_crash_or_wrong_bytes(tmp_path, adapter, damage, is_open):
    catalog = Catalog(LAYOUT, store=RowStore(tmp_path / "cache", LAYOUT))
    digest = catalog.register("a", adapter)
    before = catalog.image(digest) if is_open else None
    rows = catalog.rows(digest)
    assert isinstance(rows, RowFile)
    path = rows.path
    if not is_open:
        catalog.rows(digest).close()
    damage(path)
    if is_open and damage is os.remove:
        np.testing.assert_array_equal(catalog.image(digest), before)  # the open file lives on
    else:
        with pytest.raises(AdapterDamaged, match=digest[:12]):
            catalog.image(digest)
    catalog.discard_rows(digest)
    assert catalog.prepare(adapter).record.digest == digest, "made again from its folder"
    assert len(catalog.image(digest)) == catalog.record(digest).num_pages


@pytest.mark.parametrize("where", [0, 12, 40, 3000])
def test_a_damaged_header_is_noticed_at_the_next_start(tmp_path, adapter, reads, where):
    path = RowStore(tmp_path / "cache", LAYOUT).prepare(adapter, None).path
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    again = RowStore(tmp_path / "cache", LAYOUT).prepare(adapter, None)
    assert image_of(again).any()
    with path.open("r+b") as file:
        file.truncate(10)
    with pytest.raises(ValueError, match="no row file"):
        open_rows(path)


def of_the_first_format(path: Path) -> bytes:
    """The row file at ``path`` as the first format had it: CRC-32, and a prefix of 16 bytes."""
    file = open_rows(path)
    pages = np.frombuffer(path.read_bytes(), np.uint8)[-file.size_bytes :].reshape(-1, file.header.page_bytes)
    header, record = file.header, file.header.record
    fields = {
        "digest": record.digest,
        "layout": header.layout,
        "ranks": record.signature.lora_ranks,
        "num_pages": record.num_pages,
        "size_bytes": record.size_bytes,
        "page_bytes": header.page_bytes,
        "target_modules": list(header.target_modules),
        "checksums": [zlib.crc32(page) for page in pages],
    }
    text = json.dumps(fields, separators=(",", ":")).encode()
    head = struct.pack("<8sII", b"EVFLROWS", len(text), zlib.crc32(text)) + text
    return head + b"\0" * (-len(head) % 4096) + pages.tobytes()


def test_files_of_an_older_format_are_made_again_and_never_read(tmp_path, adapter, reads):
    file = RowStore(tmp_path / "cache", LAYOUT).prepare(adapter, None)
    image, path = image_of(file), file.path
    path.write_bytes(of_the_first_format(path))
    with pytest.raises(ValueError, match="no row file of this version"):
        open_rows(path)
    num_reads = len(reads)
    again = RowStore(tmp_path / "cache", LAYOUT).prepare(adapter, None)
    assert len(reads) == num_reads + 1, "converted again from its folder"
    assert again.path == path
    np.testing.assert_array_equal(image_of(again), image)


def test_reads_that_come_in_pieces_fill_scattered_pages(tmp_path, adapter, monkeypatch):
    file = RowStore(tmp_path / "cache", LAYOUT).prepare(make_adapter(adapter, CONFIG, lora_rank=8), None)
    whole, page_bytes = image_of(file), LAYOUT.page_bytes
    assert len(whole) >= 6
    monkeypatch.setattr(rows_module, "_BYTES_PER_READ", 3 * page_bytes)
    sizes = iter(range(page_bytes // 3, 10**9, 1001))
    preadv = os.preadv

    def in_pieces(fd, buffers, position):
        return preadv(fd, [memoryview(buffers[0]).cast("B")[: next(sizes) % page_bytes + 1]], position)

    monkeypatch.setattr(os, "preadv", in_pieces)
    target = np.zeros((2 * len(whole), page_bytes), np.uint8)
    file.read(1, [target[:3], target[4:5], target[5 : len(whole)]])
    np.testing.assert_array_equal(target[[0, 1, 2, *range(4, len(whole))]], whole[1:])
    assert not target[3].any()


def test_other_layouts_have_other_rows(tmp_path, adapter):
    layouts = [
        LAYOUT,
        ArenaLayout(CONFIG.shape, 2),
        ArenaLayout(CONFIG.shape, 4, 64),
        ArenaLayout.of_shard(Shard(CONFIG.shape, 0, 2), 4),
        ArenaLayout.of_shard(Shard(CONFIG.shape, 1, 2), 4),
    ]
    assert len({layout_fingerprint(layout) for layout in layouts}) == len(layouts)
    files = [RowStore(tmp_path / "cache", layout).prepare(adapter, None) for layout in layouts]
    assert len({file.path for file in files}) == len(layouts)
    assert len({file.header.record.digest for file in files}) == 1
    assert not np.array_equal(image_of(files[3]), image_of(files[4]))


def test_a_lower_limit_on_ranks_holds_for_what_was_converted_before(tmp_path, adapter):
    store = RowStore(tmp_path / "cache", LAYOUT)
    store.prepare(adapter, 8)
    with pytest.raises(AdapterRejected, match="rank 3 is above the configured maximum of 2"):
        store.prepare(adapter, 2)


def test_an_interrupted_write_leaves_nothing_that_is_found(tmp_path, adapter, monkeypatch):
    store = RowStore(tmp_path / "cache", LAYOUT)

    def fails(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(AdapterError, match=r"cannot take .* more: No space left on device"):
            store.prepare(adapter, None)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    orphan = store._rows / ".x.rows.1.2.tmp"
    orphan.write_bytes(b"half")
    os.utime(orphan, (0, 0))
    RowStore(tmp_path / "cache", LAYOUT)
    assert not orphan.exists()
    assert image_of(store.prepare(adapter, None)).any()


def test_the_cache_keeps_its_size_by_giving_up_what_is_stale_then_what_is_old(tmp_path):
    folders = [make_adapter(tmp_path / f"a{i}", CONFIG, lora_rank=3, seed=i) for i in range(5)]
    one = RowStore(tmp_path / "probe", LAYOUT).prepare(folders[0], None).path.stat().st_size
    store = RowStore(tmp_path / "cache", LAYOUT, capacity_bytes=3 * one + 100)
    files = [store.prepare(folder, None) for folder in folders[:3]]
    for i, file in enumerate(files):
        os.utime(file.path, (i, i))
    (folders[1] / "adapter_config.json").unlink()  # its folder is no adapter any more
    in_use = {files[0].header.record.digest}
    fourth = store.prepare(folders[3], None, in_use)
    assert [file.path.exists() for file in (*files, fourth)] == [True, False, True, True]
    fifth = store.prepare(folders[4], None, in_use)
    assert [file.path.exists() for file in (*files, fourth, fifth)] == [True, False, False, True, True]
    assert store.size_bytes <= store.capacity_bytes
    everything = {file.header.record.digest for file in (files[0], fourth, fifth)}
    with pytest.raises(AdapterCacheFull, match=r"the adapter cache is full: .* by 3 registered adapters and .* unload some"):
        store.prepare(folders[2], None, everything)


def test_purging_an_unloaded_adapter_deletes_its_rows(tmp_path, adapter):
    catalog = Catalog(LAYOUT, store=RowStore(tmp_path / "cache", LAYOUT))
    digest = catalog.register("a", adapter)
    catalog.register("b", adapter)
    rows = catalog.rows(digest)
    assert isinstance(rows, RowFile)
    path = rows.path
    catalog.retain(digest)
    catalog.unregister("a", purge=True)
    assert path.exists(), "another name needs them"
    catalog.unregister("b", purge=True)
    assert path.exists(), "a request in flight needs them"
    catalog.release(digest)
    assert not path.exists()
    catalog.register("c", adapter)
    catalog.unregister("c")
    assert path.exists(), "without a purge the next load is quick"


def test_unloading_closes_the_file(tmp_path, adapter):
    catalog = Catalog(LAYOUT, store=RowStore(tmp_path / "cache", LAYOUT))
    digest = catalog.register("a", adapter)
    rows = catalog.rows(digest)
    catalog.image(digest)
    assert catalog.is_on_host(digest)
    assert isinstance(rows, RowFile)
    assert rows.is_open
    assert catalog.host_bytes == rows.size_bytes
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    assert str(rows.path) in links
    catalog.unregister("a")
    assert not rows.is_open
    assert catalog.host_bytes == 0
    assert not list(catalog.on_host())
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    assert str(rows.path) not in links


def anonymous_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_memory_of_the_process_does_not_grow_with_the_number_of_adapters(tmp_path):
    catalog = Catalog(LAYOUT, store=RowStore(tmp_path / "cache", LAYOUT))
    folder, target = tmp_path / "adapter", np.empty((64, LAYOUT.page_bytes), np.uint8)
    sizes = []
    for i in range(120):
        make_adapter(folder, CONFIG, lora_rank=16, seed=i)
        digest = catalog.register(f"a{i}", folder)
        catalog.rows(digest).read(0, [target[: catalog.record(digest).num_pages]])
        if i in (20, 119):
            sizes.append(anonymous_kib())
    assert len(catalog) == 120
    image_kib = catalog.size_bytes / 120 / 1024
    assert sizes[1] - sizes[0] < 0.15 * 99 * image_kib, f"{sizes[1] - sizes[0]} KiB for 99 adapters of {image_kib:.0f}"


def test_two_that_prepare_the_same_folder_at_once_convert_it_once(tmp_path, adapter, reads):
    store = RowStore(tmp_path / "cache", LAYOUT)
    files = []
    threads = [threading.Thread(target=lambda: files.append(store.prepare(adapter, None))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert len({file.path for file in files}) == 1


def test_a_cache_that_cannot_be_used_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the adapter cache .* cannot be used: .*; name another folder"):
        RowStore(tmp_path / "file" / "cache", LAYOUT)


def test_the_header_tells_all_that_is_checked(tmp_path, adapter):
    header = RowStore(tmp_path / "cache", LAYOUT).prepare(adapter, None).header
    assert header.layout == layout_fingerprint(LAYOUT)
    assert len(header.checksums) == header.record.num_pages
    source = json.loads(next((tmp_path / "cache").rglob("*.json")).read_text())
    assert source["digest"] == header.record.digest
    sizes = [(adapter / name).stat().st_size for name in ("adapter_config.json", "adapter_model.safetensors")]
    assert [state[0] for state in source["state"]] == sizes
