"""The calls of vLLM, SGLang and SageMaker, our own resource, and folders that load when they are asked for."""

from __future__ import annotations

import asyncio

import httpx
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, in_process, make_adapter

from evenflow.serving.server.access.model_names import RETRY_BROKEN_S
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig

TEXT = {"model": "base", "prompt": "hi"}


def with_server(main, **config):
    """Run ``main(client, engine, state)`` against a fresh server."""

    async def go():
        engine = FakeEngine()
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(**config))
        async with in_process(app) as client:
            state: ServerState = app.state.server
            return await main(client, engine, state)

    return asyncio.run(go())


def message(response: httpx.Response) -> str:
    return response.json()["error"]["message"]


def test_vllm_load_and_unload(tmp_path):
    path = str(make_adapter(tmp_path, "a0"))
    other = str(make_adapter(tmp_path, "a1", "other"))

    async def main(client, engine, state):
        answer = await client.post("/v1/load_lora_adapter", json={"lora_name": "a0", "lora_path": path})
        assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'a0' added successfully.")
        again = await client.post("/v1/load_lora_adapter", json={"lora_name": "a0", "lora_path": path})
        assert again.status_code == 400
        assert message(again) == (
            "The lora adapter 'a0' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True."
        )
        before = engine.infos["a0"].digest
        inplace = {"lora_name": "a0", "lora_path": other, "load_inplace": True}
        assert (await client.post("/v1/load_lora_adapter", json=inplace)).status_code == 200
        assert engine.infos["a0"].digest != before
        models = (await client.get("/v1/models")).json()["data"]
        assert [model["root"] for model in models if model["id"] == "a0"] == [engine.infos["a0"].digest]
        assert path not in str(models)
        gone = await client.post("/v1/unload_lora_adapter", json={"lora_name": "a0", "lora_int_id": None})
        assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'a0' removed successfully.")
        assert (await client.post("/v1/completions", json={**TEXT, "model": "a0"})).status_code == 404
        unknown = await client.post("/v1/unload_lora_adapter", json={"lora_name": "a0"})
        assert (unknown.status_code, message(unknown)) == (404, "The lora adapter 'a0' cannot be found.")

    with_server(main)


def test_vllm_load_errors(tmp_path):
    bad = str(make_adapter(tmp_path, "bad", "bad"))

    async def main(client, engine, state):
        async def load(**body):
            return await client.post("/v1/load_lora_adapter", json=body)

        for body in ({}, {"lora_name": "x"}, {"lora_path": "/x"}, {"lora_name": "", "lora_path": ""}):
            answer = await load(**body)
            assert (answer.status_code, message(answer)) == (400, "Both 'lora_name' and 'lora_path' must be provided.")
        missing = await load(lora_name="zz", lora_path=str(tmp_path / "nothing"))
        assert missing.status_code == 404
        assert message(missing) == f"Loading lora zz failed: No adapter found for {tmp_path / 'nothing'}"
        empty = await load(lora_name="zz", lora_path=str(tmp_path))
        assert (empty.status_code, message(empty)) == (404, f"Loading lora zz failed: No adapter found for {tmp_path}")
        for path in ("/" + "x" * 5000, "\0"):
            assert (await load(lora_name="zz", lora_path=path)).status_code in (400, 404)
        rejected = await load(lora_name="bad", lora_path=bad)
        assert rejected.status_code == 400
        assert "use_dora is true; not supported; rank 9000" in message(rejected), "all reasons at once"
        assert rejected.json()["error"]["code"] == "adapter_rejected"
        base = await load(lora_name="base", lora_path=bad)
        assert (base.status_code, message(base)) == (400, "'base' is the name of the base model")
        for name in ("a b", "../a", "ü", "x" * 300):
            assert (await load(lora_name=name, lora_path=bad)).status_code == 400
        answer = await client.post("/v1/unload_lora_adapter", json={})
        assert answer.status_code == 400
        assert engine.infos == {}

    with_server(main)


def test_sglang_and_sagemaker_spellings(tmp_path):
    path = str(make_adapter(tmp_path, "a0"))

    async def main(client, engine, state):
        answer = await client.post("/load_lora_adapter", json={"lora_name": "s", "lora_path": path, "pinned": True})
        digest = engine.infos["s"].digest
        assert answer.json() == {"success": True, "error_message": "", "loaded_adapters": {"s": digest}}
        assert engine.infos["s"].is_pinned
        again = await client.post("/load_lora_adapter", json={"lora_name": "s", "lora_path": path})
        assert again.status_code == 400
        assert again.json()["success"] is False
        assert "already been loaded" in again.json()["error_message"]
        gone = await client.post("/unload_lora_adapter", json={"lora_name": "s"})
        assert gone.json() == {"success": True, "error_message": "", "loaded_adapters": {}}
        made = await client.post("/adapters", json={"name": "m", "src": path})
        assert (made.status_code, made.text) == (200, "Success: LoRA adapter 'm' added successfully.")
        removed = await client.delete("/adapters/m")
        assert (removed.status_code, removed.text) == (200, "Success: LoRA adapter 'm' removed successfully.")
        assert (await client.delete("/adapters/m")).status_code == 404

    with_server(main)


def test_the_adapter_resource(tmp_path):
    path = str(make_adapter(tmp_path, "a0"))

    async def main(client, engine, state):
        await client.post("/v1/load_lora_adapter", json={"lora_name": "org/a0", "lora_path": path})
        pinned = await client.post("/v1/adapters/org/a0/pin")
        assert pinned.json()["pinned"] is True
        listed = (await client.get("/v1/adapters")).json()
        assert listed["object"] == "list"
        assert listed["data"] == [
            {
                "name": "org/a0",
                "digest": engine.infos["org/a0"].digest,
                "rank": 8,
                "bytes": 4096,
                "num_pages": 1,
                "state": "host",
                "pinned": True,
                "in_flight": 0,
                "num_loads": 0,
                "target_modules": ["q_proj"],
                "base_model": None,
                "warning": None,
                "object": "adapter",
            }
        ]
        assert (await client.post("/v1/adapters/org/a0/unpin")).json()["pinned"] is False
        assert (await client.post("/v1/adapters/nobody/pin")).status_code == 404
        assert (await client.delete("/v1/adapters/org/a0")).json()["data"] == []
        assert (await client.delete("/v1/adapters/org/a0")).status_code == 404

    with_server(main)


def test_pinning_and_purging_beside_vllms_calls(tmp_path):
    path = str(make_adapter(tmp_path, "a0"))

    async def main(client, engine, state):
        await client.post("/v1/load_lora_adapter", json={"lora_name": "a0", "lora_path": path})
        pinned = await client.post("/v1/pin_lora_adapter", json={"lora_name": "a0"})
        assert (pinned.status_code, pinned.text) == (200, "Success: LoRA adapter 'a0' pinned successfully.")
        assert engine.infos["a0"].is_pinned
        unpinned = await client.post("/v1/unpin_lora_adapter", json={"lora_name": "a0"})
        assert (unpinned.status_code, unpinned.text) == (200, "Success: LoRA adapter 'a0' unpinned successfully.")
        assert not engine.infos["a0"].is_pinned
        assert (await client.post("/v1/pin_lora_adapter", json={"lora_name": "nobody"})).status_code == 404
        assert (await client.post("/v1/pin_lora_adapter", json={})).status_code == 400
        await client.post("/v1/unload_lora_adapter", json={"lora_name": "a0", "purge_cache": True})
        for name in ("b", "c"):
            await client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path})
        wrong = await client.delete("/v1/adapters/b?purge=yes")
        assert (wrong.status_code, message(wrong)) == (400, "purge is 'yes'; allowed: true, false")
        assert (await client.delete("/v1/adapters/b?purge=true")).status_code == 200
        assert (await client.delete("/v1/adapters/c")).status_code == 200
        assert engine.purged == ["a0", "b"]

    with_server(main)


def test_folders_load_when_they_are_first_asked_for(tmp_path):
    folder = tmp_path / "adapters"
    make_adapter(folder, "lazy")
    make_adapter(tmp_path, "outside")
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "empty").mkdir()

    async def main(client, engine, state):
        answers = await asyncio.gather(*(client.post("/v1/completions", json={**TEXT, "model": "lazy"}) for _ in range(10)))
        assert {answer.json()["choices"][0]["text"] for answer in answers} == {"[lazy] hi"}
        assert engine.num_loads == 1, "ten callers, one load"
        for name in (
            "../outside",
            "link",
            "empty",
            "nothing",
            ".",
            "..",
            "lazy/",
            "lazy/../lazy",
            "/etc",
            "",
            "\0",
            "x" * 5000,
            "l\n",
        ):
            answer = await client.post("/v1/completions", json={**TEXT, "model": name})
            assert answer.status_code == 404, name
        assert engine.num_loads == 1
        later = make_adapter(folder, "later")
        assert (await client.post("/v1/completions", json={**TEXT, "model": "later"})).status_code == 200
        assert str(later) not in (await client.get("/v1/models")).text

    with_server(main, adapter_dir=folder)


def test_a_broken_folder_is_not_read_again_and_again(tmp_path):
    make_adapter(tmp_path, "broken", "bad")

    async def go():
        now_s = [100.0]
        engine = FakeEngine()
        config = ServerConfig(adapter_dir=tmp_path)
        from evenflow.serving.server.app import build_app

        state = ServerState(engine, FakeTokenizer(), FakeTemplate(), config, clock=lambda: now_s[0])
        async with in_process(build_app(state, {})) as client:
            for _ in range(5):
                answer = await client.post("/v1/completions", json={**TEXT, "model": "broken"})
                assert answer.status_code == 400
                assert "use_dora" in message(answer)
                assert str(tmp_path) not in answer.text, "tenants see no paths"
            assert engine.num_loads == 1
            (tmp_path / "broken" / "adapter_config.json").write_text("{}")
            now_s[0] += RETRY_BROKEN_S + 1
            assert (await client.post("/v1/completions", json={**TEXT, "model": "broken"})).status_code == 200

    asyncio.run(go())


def test_an_adapter_that_is_not_the_clients_is_never_loaded(tmp_path):
    folder = tmp_path / "adapters"
    make_adapter(folder, "secret")
    (tmp_path / "clients.toml").write_text('[clients.alice]\nadapters = ["alice-*"]\n')

    async def main(client, engine, state):
        answer = await client.post("/v1/completions", json={**TEXT, "model": "secret", "user": "alice"})
        assert answer.status_code == 404
        assert engine.num_loads == 0
        assert (await client.post("/v1/completions", json={**TEXT, "model": "secret"})).status_code == 200
        seen = await client.get("/v1/models", headers={"x-evenflow-client": "alice"})
        assert [model["id"] for model in seen.json()["data"]] == ["base"]

    with_server(main, adapter_dir=folder, clients_file=tmp_path / "clients.toml", is_open=True)


def test_an_adapter_that_the_engine_has_lost_is_404_and_forgotten(tmp_path):
    path = str(make_adapter(tmp_path, "a0"))

    async def main(client, engine, state):
        await client.post("/v1/load_lora_adapter", json={"lora_name": "a0", "lora_path": path})
        del engine.infos["a0"]
        assert (await client.post("/v1/completions", json={**TEXT, "model": "a0", "stream": True})).status_code == 404
        assert "a0" not in state.names

    with_server(main)


def test_adapters_of_the_start_are_registered_or_the_server_does_not_open(tmp_path):
    good, bad = make_adapter(tmp_path, "good"), make_adapter(tmp_path, "bad", "bad")

    async def go():
        app = create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(), {"x": good})
        async with in_process(app) as client:
            assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["base", "x"]
        app = create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(), {"x": good, "y": bad})
        async with in_process(app) as client:
            assert (await client.get("/ready")).status_code == 503
            assert "use_dora" in str(app.state.server.failure)

    asyncio.run(go())
