"""Names in a folder: no walk for a request, a listing that follows, nothing outside, ten thousand at ease."""

from __future__ import annotations

import asyncio
import os
import shutil
import time

import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, in_process, make_adapter

from evenflow.base.errors import AdapterCacheFull
from evenflow.serving.server.access import adapter_folder
from evenflow.serving.server.access.adapter_folder import AdapterFolder
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.app import build_app, create_app
from evenflow.serving.server.server_config import ServerConfig

TEXT = {"model": "base", "prompt": "hi"}


def settle(folder):
    """Make the folder look as if nothing had come or gone for a while."""
    os.utime(folder, ns=(0, time.time_ns() - 10_000_000_000))


@pytest.fixture
def scans(monkeypatch):
    count = []
    real = os.scandir
    monkeypatch.setattr(adapter_folder.os, "scandir", lambda path: (count.append(path), real(path))[1])
    return count


def test_the_listing_follows_what_comes_and_goes_and_reads_only_after_a_change(tmp_path, scans):
    for name in ("a", "b"):
        make_adapter(tmp_path, name)
    folder = AdapterFolder(tmp_path, time.time_ns)
    settle(tmp_path)
    assert folder.names().keys() == {"a", "b"}
    assert len(scans) == 1
    for _ in range(5):
        folder.names()
        assert folder.find("a") == tmp_path / "a"
        assert folder.find("nobody") is None
    assert len(scans) == 1, "nothing had changed"
    make_adapter(tmp_path, "c")
    shutil.rmtree(tmp_path / "a")
    assert folder.find("c") == tmp_path / "c", "at once"
    assert folder.names().keys() == {"b", "c"}
    shutil.rmtree(tmp_path)
    assert folder.names() == {}


def test_a_folder_that_is_still_being_copied_is_listed_when_its_config_is_there(tmp_path):
    (tmp_path / "slow").mkdir()
    settle(tmp_path)
    folder = AdapterFolder(tmp_path, time.time_ns)
    assert folder.names() == {}
    (tmp_path / "slow" / "adapter_config.json").write_text("{}")
    settle(tmp_path)
    assert folder.names().keys() == {"slow"}


def test_names_that_come_within_one_tick_of_the_clock_are_not_missed(tmp_path):
    folder = AdapterFolder(tmp_path, time.time_ns)
    stamp = tmp_path.stat().st_mtime_ns
    assert folder.names() == {}
    make_adapter(tmp_path, "late")
    os.utime(tmp_path, ns=(stamp, stamp))
    assert folder.names().keys() == {"late"}


def test_nothing_outside_the_folder_is_found(tmp_path):
    inside = tmp_path / "inside"
    make_adapter(inside, "good")
    make_adapter(tmp_path, "outside")
    (inside / "link").symlink_to(tmp_path / "outside")
    (inside / "loop").symlink_to(inside / "loop")
    (inside / "file").write_text("")
    folder = AdapterFolder(inside, time.time_ns)
    for name in (
        "..",
        ".",
        "../outside",
        "link",
        "file",
        "good/",
        "good/../good",
        "/etc",
        "",
        "a\0b",
        "-x",
        "x" * 300,
        "good\n",
    ):
        assert folder.find(name) is None, name
    assert folder.names().keys() == {"good"}
    assert folder.passed_over.keys() == {"link", "loop"}
    assert "leads out of the adapter folder" in folder.passed_over["link"]


def test_ten_thousand_names(tmp_path, scans):
    for i in range(10_000):
        path = tmp_path / f"tenant-{i:05d}"
        path.mkdir()
        (path / "adapter_config.json").touch()
    settle(tmp_path)

    async def main():
        engine = FakeEngine()
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(adapter_dir=tmp_path))
        async with in_process(app) as client:
            began = time.perf_counter()
            for i in range(20):
                assert (
                    await client.post("/v1/completions", json={**TEXT, "model": f"tenant-{i * 491:05d}"})
                ).status_code == 200
            assert time.perf_counter() - began < 5
            assert not scans, "a request walked the folder"
            listed = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
            assert len(listed) == len(set(listed)) == 10_001
            assert (await client.get("/v1/models/tenant-09999")).json()["root"] == "tenant-09999"
            assert (await client.get("/v1/models/tenant-10000")).status_code == 404
            for _ in range(3):
                await client.get("/v1/models")
            assert len(scans) == 1
            assert engine.num_loads == 20

    asyncio.run(main())


class EngineForThree(FakeEngine):
    """Refuses a fourth adapter."""

    async def load_adapter(self, name, path, replace=False, **options):
        if len(self.infos) == 3 and name not in self.infos:
            raise AdapterCacheFull("the adapter cache is full")
        return await super().load_adapter(name, path, replace, **options)


def test_adapters_of_the_folder_make_room_for_each_other_the_longest_unused_first(tmp_path):
    folder = tmp_path / "folder"
    for name in ("a", "b", "c", "d", "e"):
        make_adapter(folder, name, name)
    registered = make_adapter(tmp_path, "registered", "registered")
    now_s = 0.0

    async def main():
        nonlocal now_s
        engine = EngineForThree()
        config = ServerConfig(adapter_dir=folder)
        state = ServerState(engine, FakeTokenizer(), FakeTemplate(), config, clock=lambda: now_s)
        app = build_app(state, {"registered": registered})
        async with in_process(app) as client:

            async def ask(name, seconds=2.0):
                nonlocal now_s
                now_s += seconds
                return await client.post("/v1/completions", json={**TEXT, "model": name})

            for name in ("a", "b", "a", "c"):
                assert (await ask(name)).status_code == 200
            assert engine.infos.keys() == {"registered", "a", "c"}, "b was the longest unused"
            engine.infos["a"].is_pinned = True
            engine.infos["c"].in_flight = 1
            refused = await ask("d")
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "adapter_cache_full"
            assert refused.headers["retry-after"] == "1"
            engine.infos["c"].in_flight = 0
            assert (await ask("d")).status_code == 200, "a refusal is not remembered"
            assert engine.infos.keys() == {"registered", "a", "d"}
            assert (await ask("e", seconds=0.5)).status_code == 503, "d was asked for just now"
            assert (await ask("c")).status_code == 200, "it comes back when it is asked for"
            listed = {model["id"] for model in (await client.get("/v1/models")).json()["data"]}
            assert {"registered", "a", "b", "c", "d", "e"} <= listed, "those that had to go can still be asked for"

    asyncio.run(main())


def test_a_folder_that_goes_takes_its_name_along_and_may_come_back(tmp_path):
    make_adapter(tmp_path, "a")
    explicit = make_adapter(tmp_path / "elsewhere", "e")

    async def main():
        engine = FakeEngine()
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(adapter_dir=tmp_path))
        async with in_process(app) as client:

            async def status(name):
                return (await client.post("/v1/completions", json={**TEXT, "model": name})).status_code

            await client.post("/v1/load_lora_adapter", json={"lora_name": "e", "lora_path": str(explicit)})
            assert [await status(name) for name in ("a", "base:a", "e")] == [200, 200, 200]
            shutil.rmtree(tmp_path / "a")
            shutil.rmtree(explicit)
            assert [await status(name) for name in ("a", "base:a")] == [404, 404]
            await asyncio.sleep(0)
            assert "a" not in engine.infos, "the engine was told"
            assert await status("e") == 200, "who was loaded by a call stays until a call unloads it"
            make_adapter(tmp_path, "a")
            assert await status("a") == 200
            assert engine.num_loads == 3

    asyncio.run(main())


def test_what_a_client_may_not_use_is_not_listed(tmp_path):
    folder = tmp_path / "adapters"
    make_adapter(folder, "alice-1")
    make_adapter(folder, "secret")
    (tmp_path / "clients.toml").write_text('[clients.alice]\nadapters = ["alice-*"]\n')

    async def main():
        config = ServerConfig(adapter_dir=folder, clients_file=tmp_path / "clients.toml", is_open=True)
        app = create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), config)
        async with in_process(app) as client:
            seen = await client.get("/v1/models", headers={"x-evenflow-client": "alice"})
            assert [model["id"] for model in seen.json()["data"]] == ["base", "alice-1"]
            assert (await client.get("/v1/models/secret", headers={"x-evenflow-client": "alice"})).status_code == 404

    asyncio.run(main())


def test_names_of_two_parts_and_links_as_platforms_make_them(tmp_path, caplog):
    root = tmp_path / "root"
    make_adapter(root / "org", "one")
    make_adapter(root / "org", "two")
    make_adapter(root / "other", "private")
    make_adapter(root, "plain")
    mounted = root / "mounted"  # Kubernetes: name -> ..data/name, ..data -> ..2026
    make_adapter(mounted, "..2026")
    (mounted / "..data").symlink_to("..2026")
    (mounted / "adapter_config.json").symlink_to("..data/adapter_config.json")
    make_adapter(root / "models--a--b" / "snapshots", "9f")
    (root / "latest").symlink_to("models--a--b/snapshots/9f")  # whoever owns the root made it
    (root / "org" / "theirs").symlink_to("../other/private")  # a stranger may have
    (root / "org" / "deep").mkdir()
    (root / "empty").mkdir()
    (root / "bad\nname").mkdir()
    folder = AdapterFolder(root, time.time_ns)
    with caplog.at_level("WARNING", "evenflow.server"):
        assert folder.names().keys() == {"org/one", "org/two", "other/private", "plain", "mounted", "latest"}
    assert folder.passed_over == {
        "org/theirs": "it is a link that leads out of org",
        "org/deep": "its adapter_config.json is missing",
        "models--a--b": "its adapter_config.json is missing",
        "empty": "its adapter_config.json is missing",
        "bad\nname": "its name is not allowed: at most six parts, printable, not hidden, no blanks around them",
    }
    assert len(caplog.records) == 5
    folder.names()
    assert len(caplog.records) == 5, "said once"
    assert folder.find("org/one") == root / "org" / "one"
    assert folder.boundary("org/one") == root / "org"
    assert folder.boundary("latest") == root / "models--a--b" / "snapshots" / "9f"
    for name in ("org/theirs", "org", "org/one/deeper", "org/../plain", "org//one", "/org", "org/"):
        assert folder.find(name) is None, name
    make_adapter(root / "org", "three")
    (root / "org" / "one" / "adapter_config.json").rename(root / "org" / "one" / "gone")
    assert "org/three" in folder.names()
    assert not folder.has("org/one")
