"""Adapters from a hub's cache, an operator's resolver and other storage: found, copied, bounded; not for those who may not."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import types
from types import SimpleNamespace

import fsspec
import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, in_process, make_adapter

from evenflow.access.identity import Client
from evenflow.base.errors import AdapterNotFound, AdapterRejected, AdapterUnavailable, ConfigError
from evenflow.serving.server.access.adapter_sources import HubCache, make_resolver
from evenflow.serving.server.access.downloads import DownloadCache
from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_hub(folder, name, commit=COMMIT, branch="main"):
    """What the hub's client leaves behind: blobs, a snapshot of links to them, and the branch's commit."""
    model = folder / f"models--{name.replace('/', '--')}"
    snapshot = model / "snapshots" / commit
    for path in (model / "blobs", model / "refs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    (model / "blobs" / "abc").write_text("{}")
    (snapshot / "adapter_config.json").symlink_to("../../blobs/abc")
    (model / "refs" / branch).write_text(commit)
    return snapshot


def put(name, weights=b"weights", root="memory://bucket", **more):
    system = fsspec.filesystem("memory")
    for file, data in {"adapter_config.json": b"{}", "adapter_model.safetensors": weights, **more}.items():
        system.pipe_file(f"/{root.partition('//')[2]}/{name}/{file}", data)
    return f"{root}/{name}"


@pytest.fixture
def storage():
    fsspec.filesystem("memory").store.clear()
    yield
    fsspec.filesystem("memory").store.clear()


def fetch(cache, address):
    return asyncio.run(cache.folder_of(address))


def test_names_of_a_hubs_cache_mean_the_branchs_commit(tmp_path):
    snapshot = make_hub(tmp_path, "org/poet")
    other = make_hub(tmp_path, "org/poet", commit="f" * 40, branch="next")
    hub = HubCache(tmp_path)
    assert hub.folder_of("org/poet") == snapshot
    assert hub.folder_of(f"org/poet@{COMMIT}") == snapshot
    assert hub.folder_of("org/poet@next") == other
    (tmp_path / "models--org--poet" / "refs" / "main").write_text("../../../../etc")
    for name in ("org/poet", "org/nobody", "../org/poet", "org/poet@../x", "org/poet@", "a/b/c", "", "org/.hidden"):
        assert hub.folder_of(name) is None, name


def test_what_was_copied_is_used_until_the_storage_or_the_copy_changes(tmp_path, storage):
    cache = DownloadCache(tmp_path / "copies", 1 << 20, 10.0)
    address = put("a", b"one")
    folder = fetch(cache, address)
    assert (folder / "adapter_model.safetensors").read_bytes() == b"one"
    stamp = (folder / "adapter_config.json").stat().st_ino
    assert fetch(cache, address) == folder
    assert (folder / "adapter_config.json").stat().st_ino == stamp, "copied again without need"
    put("a", b"three")
    assert (fetch(cache, address) / "adapter_model.safetensors").read_bytes() == b"three"
    (folder / "adapter_model.safetensors").write_bytes(b"thr33")
    assert (fetch(cache, address) / "adapter_model.safetensors").read_bytes() == b"three", "a changed copy was used"


def test_digests_sizes_and_missing_things_are_refused(tmp_path, storage):
    cache = DownloadCache(tmp_path / "copies", 100, 10.0)
    address = put("a", b"one")
    right = hashlib.sha256(b"one").hexdigest()
    assert fetch(cache, f"{address}#sha256={right}").is_dir()
    with pytest.raises(AdapterRejected, match="another sha256"):
        fetch(cache, f"{address}#sha256={'0' * 64}")
    with pytest.raises(AdapterRejected, match="64 hex digits"):
        fetch(cache, f"{address}#md5=1")
    with pytest.raises(AdapterRejected, match=r"the download cache holds 100"):
        fetch(cache, put("large", b"x" * 200))
    with pytest.raises(AdapterNotFound, match=r"it needs adapter_config\.json and weights"):
        fetch(cache, "memory://bucket/nothing")
    with pytest.raises(AdapterUnavailable, match="cannot be reached"):
        fetch(cache, "nosuchscheme://bucket/a")
    with pytest.raises(AdapterUnavailable, match=r"\*\*\*@host") as caught:
        fetch(cache, "nosuchscheme://user:secret@host/a")
    assert "secret" not in str(caught.value)


def test_what_was_used_longest_ago_makes_room(tmp_path, storage):
    cache = DownloadCache(tmp_path / "copies", 250, 10.0)
    folders = [fetch(cache, put(name, name.encode() * 100)) for name in ("a", "b")]
    for folder, used_s in zip(folders, (200, 100)):
        os.utime(folder, (used_s, used_s))
    fetch(cache, put("c", b"c" * 100))
    assert [folder.exists() for folder in folders] == [True, False]


def test_a_storage_that_lies_about_sizes_or_hangs_is_cut_off(tmp_path, storage, monkeypatch):
    address = put("a", b"x" * 50)
    system = fsspec.filesystem("memory")
    real = type(system).info
    monkeypatch.setattr(type(system), "info", lambda self, path, **kw: {**real(self, path, **kw), "size": 3})
    with pytest.raises(AdapterRejected, match="longer than its storage says"):
        fetch(DownloadCache(tmp_path / "copies", 1 << 20, 10.0), address)
    monkeypatch.undo()
    with pytest.raises(AdapterUnavailable, match="in time"):
        fetch(DownloadCache(tmp_path / "copies", 1 << 20, 0.0), address)
    assert not [entry for entry in (tmp_path / "copies").iterdir() if entry.name.startswith(".copy")]


class Ours:
    """As the manual shows it."""

    asked: list[str] = []

    async def resolve(self, name: str) -> str | None:
        self.asked.append(name)
        if name == "broken":
            raise RuntimeError("no database")
        return "memory://bucket/a" if name == "team/remote" else None


class LikeVllm:
    async def resolve_lora(self, base_model_name: str, lora_name: str):
        return SimpleNamespace(lora_name=lora_name, lora_path=f"memory://{base_model_name}/a") if lora_name == "x" else None


@pytest.fixture
def plugin(monkeypatch):
    module = types.ModuleType("site_adapters")
    vars(module).update(Ours=Ours, LikeVllm=LikeVllm, Neither=object)
    monkeypatch.setitem(sys.modules, "site_adapters", module)
    Ours.asked.clear()


def ask(config, *models, path="/v1/completions"):
    async def run():
        engine = FakeEngine()
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), config)
        async with in_process(app) as http:
            return engine, [await http.post(path, json={"model": model, "prompt": "hi"}) for model in models]

    return asyncio.run(run())


def test_names_are_found_in_every_source_and_loaded_once(tmp_path, storage, plugin):
    put("a")
    make_hub(tmp_path / "hub", "org/poet")
    make_adapter(tmp_path / "dir", "deep/er/still")
    config = ServerConfig(
        hub_cache=tmp_path / "hub",
        adapter_dir=tmp_path / "dir",
        adapter_resolver="site_adapters:Ours",
        adapter_downloads=tmp_path / "copies",
    )
    names = ["org/poet", "team/remote", "deep/er/still", "base:org/poet", "team/remote", "unknown", "unknown", "broken"]
    engine, answers = ask(config, *names)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 200, 404, 404, 503]
    assert engine.num_loads == 3
    assert Ours.asked.count("unknown") == 1, "what is not there is remembered for a while"
    assert "no database" not in answers[-1].text, "the operator's errors are told in the log alone"


def test_resolvers_like_vllms_are_taken_and_others_refused_at_the_start(tmp_path, storage, plugin):
    put("a", root="memory://base")
    config = ServerConfig(adapter_resolver="site_adapters:LikeVllm", adapter_downloads=tmp_path / "copies")
    assert [answer.status_code for answer in ask(config, "x", "y")[1]] == [200, 404]
    for spec in ("site_adapters:Neither", "site_adapters:Nobody", "no_such_module:X", "site_adapters"):
        with pytest.raises(ConfigError, match="adapter_resolver is"):
            make_resolver(spec)


def test_no_source_is_asked_for_a_name_that_the_client_may_not_use(tmp_path, plugin):
    app = create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(adapter_resolver="site_adapters:Ours"))
    names = app.state.server.names
    guest = Client(name="guest", adapters=("public/*",))

    async def run():
        for model in ("team/remote", "base:team/remote"):
            with pytest.raises(AdapterNotFound):
                await names.resolve(model, guest)
        with pytest.raises(AdapterNotFound):
            await names.resolve("public/unknown", guest)

    asyncio.run(run())
    assert Ours.asked == ["public/unknown"]


def test_addresses_may_be_loaded_by_call_and_at_the_start(tmp_path, storage):
    folder = make_adapter(tmp_path, "local one")
    address = put("a")
    config = ServerConfig(adapter_downloads=tmp_path / "copies")

    async def run():
        engine = FakeEngine()
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), config, {"start": address})
        async with in_process(app) as http:
            bodies = [
                {"lora_name": "f", "lora_path": folder.as_uri()},
                {"lora_name": "m", "lora_path": address},
                {"lora_name": "n", "lora_path": "memory://bucket/none"},
            ]
            answers = [await http.post("/v1/load_lora_adapter", json=body) for body in bodies]
            listed = (await http.get("/v1/models")).json()["data"]
            return [answer.status_code for answer in answers], {model["id"] for model in listed}

    statuses, listed = asyncio.run(run())
    assert statuses == [200, 200, 404]
    assert {"start", "f", "m"} <= listed
