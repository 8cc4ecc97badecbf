"""Accounts of a live server: they equal what clients were told and what /metrics says, and each client sees its own."""

from __future__ import annotations

import re
from decimal import Decimal

import httpx
import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer, make_adapter

from evenflow.access.keys import hash_key
from evenflow.base.errors import ConfigError
from evenflow.serving.client.messages import Usage
from evenflow.serving.server.access.combinations import PREFIX, account_name
from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig

CLIENTS = """
[admin]
api_keys = ["{admin}"]
[clients.alice]
api_keys = ["{alice}"]
[clients.bob]
api_keys = ["{bob}"]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("usage")
    path = folder / "clients.toml"
    path.write_text(CLIENTS.format(**{name: hash_key(f"key-of-{name}") for name in ("admin", "alice", "bob")}))
    (folder / "prices.toml").write_text('[prices.base]\nprompt = "1"\ncompletion = "2"\n')
    config = ServerConfig(
        served_model_names=("base",), clients_file=path, accounts=str(folder / "usage.sqlite"), prices=folder / "prices.toml"
    )
    app = create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), config, {"a": make_adapter(folder, "a", "a")})
    with LiveServer(app) as live:
        yield live


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-of-{name}"}


def test_accounts_equal_what_clients_were_told_and_what_metrics_say(server) -> None:
    told: dict[tuple[str, str], list[int]] = {}
    with httpx.Client(base_url=server.url, timeout=30) as http:
        for name, model, n in (("alice", "base", 1), ("alice", "a", 3), ("bob", "base", 2), ("alice", "base", 1)):
            body = {"model": model, "prompt": ["one two three", "four"], "max_tokens": 5, "n": n}
            usage = http.post("/v1/completions", json=body, headers=key(name)).json()["usage"]
            sums = told.setdefault((name, "" if model == "base" else model), [0, 0, 0])
            for place, value in enumerate((2 * n, usage["prompt_tokens"], usage["completion_tokens"])):
                sums[place] += value
        for _ in range(100):
            rows = http.get("/v1/admin/usage?by=client,adapter", headers=key("admin")).json()["data"]
            found = {
                (row["client"], row["adapter"]): [row["requests"], row["prompt_tokens"], row["completion_tokens"]]
                for row in rows
            }
            if found == told:
                break
        assert found == told
        for row in rows:
            assert Decimal(row["cost"]) == Decimal(row["prompt_tokens"] + 2 * row["completion_tokens"]) / 1_000_000
        page = http.get("/metrics").text
        finished = sum(float(value) for value in re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", page, re.MULTILINE))
        assert finished == sum(row["requests"] for row in rows)
        generated = re.search(r"^vllm:request_generation_tokens_sum\{.*\} (\S+)$", page, re.MULTILINE)
        assert generated is not None
        assert float(generated[1]) == sum(row["completion_tokens"] for row in rows)
        assert "evenflow_accounts_away 0.0" in page
        own = http.get("/v1/usage?by=client", headers=key("bob")).json()["data"]
        assert [row["client"] for row in own] == ["bob"]
        table = http.get("/v1/usage?by=day,client&format=csv", headers=key("alice"))
        assert table.headers["content-type"].startswith("text/csv")
        assert table.text.splitlines()[1].split(",")[1] == "alice"


@pytest.mark.parametrize(
    ("path", "name", "status", "words"),
    [
        ("/v1/admin/usage", "alice", 403, "needs an administrator's API key"),
        ("/v1/usage?by=colour", "alice", 400, "allowed: client, adapter"),
        ("/v1/usage?since=never", "alice", 400, "since is 'never'"),
        ("/v1/usage?limit=0", "alice", 400, "allowed: 1 to 10000"),
        ("/v1/usage?format=xml", "alice", 400, "allowed: json, csv"),
        ("/v1/usage?client2=bob", "alice", 400, "'client2' is unknown here"),
    ],
)
def test_questions_are_checked(server, path, name, status, words) -> None:
    answer = httpx.get(server.url + path, headers=key(name))
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_a_client_cannot_ask_for_another(server) -> None:
    rows = httpx.get(server.url + "/v1/usage?by=client&client=alice", headers=key("bob")).json()["data"]
    assert {row["client"] for row in rows} <= {"bob"}


def test_nobody_without_a_key(server) -> None:
    assert httpx.get(server.url + "/v1/usage").status_code == 401
    assert httpx.get(server.url + "/v1/admin/usage").status_code == 401


def test_a_place_that_cannot_be_is_said_at_once(tmp_path) -> None:
    (tmp_path / "file").write_text("text" * 1000)
    with pytest.raises(ConfigError, match="no file of accounts"):
        create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(accounts=str(tmp_path / "file")))


def test_a_combination_is_one_row_whatever_its_weights() -> None:
    assert account_name(None, "base") == ""
    assert account_name("a", "base:a") == "a"
    assert account_name(f"{PREFIX}3", "a*0.7 + b*0.3") == account_name(f"{PREFIX}4", "a+b") == "a+b"


def test_what_the_engine_says_of_a_completion_that_was_cut_short_is_added_to_it(tmp_path) -> None:
    engine = FakeEngine(max_model_len=4096)
    engine.step_s, engine.answer = 0.02, lambda submit: "x" * 1000
    config = ServerConfig(served_model_names=("base",), accounts=str(tmp_path / "usage.sqlite"))
    with LiveServer(create_app(engine, FakeTokenizer(), FakeTemplate(), config)) as live:
        body = {"model": "base", "prompt": "four", "max_tokens": 1000, "n": 2, "user": "alice"}
        with pytest.raises(httpx.ReadTimeout):
            live.http.post("/v1/completions", json=body, timeout=0.4)
        LiveServer.wait_for(lambda: len(engine.aborted) == 2)

        def row() -> dict:
            rows = live.http.get("/v1/admin/usage?by=client,outcome").json()["data"]
            return rows[0] if rows else {}

        LiveServer.wait_for(lambda: row().get("requests") == 2)
        first = row()
        assert (first["client"], first["outcome"], first["prompt_tokens"], first["service"]) == ("alice", "abort", 5, 0)
        for number, request_id in enumerate(sorted(engine.aborted)):
            had = first["completion_tokens"] // 2
            live.call(engine.on_aborted, request_id, Usage(5, had + 2, cached_tokens=3, service=10.0 + number))
            live.call(engine.on_aborted, request_id, Usage(5, had + 2, cached_tokens=3, service=10.0 + number))
        live.call(engine.on_aborted, "nobody's", Usage(5, 5, service=99.0))
        LiveServer.wait_for(lambda: row()["service"] == 21.0)
        later = row()
    assert (later["requests"], later["prompt_tokens"], later["cached_tokens"]) == (2, 5, 3), "and a prompt counts once"
    assert 3 <= later["completion_tokens"] - first["completion_tokens"] <= 5


def test_a_real_engine_tells_what_it_charged_for_what_nobody_waited_for(tmp_path) -> None:
    import asyncio

    from evenflow.demo.assets import model_path
    from evenflow.serving.client.engine_client import EngineClient
    from evenflow.serving.client.messages import Submit
    from evenflow.serving.config.engine_config import EngineConfig
    from evenflow.serving.core.sampling import SamplingParams

    async def main() -> tuple[list[tuple[str, Usage]], float]:
        config = EngineConfig(model=model_path(), memory_bytes="16MiB", num_threads=1, adapter_cache=tmp_path)
        engine = EngineClient(config)
        told: list[tuple[str, Usage]] = []
        engine.hear_aborted(lambda request_id, usage: told.append((request_id, usage)))
        try:
            await engine.wait_until_ready()
            sampling = SamplingParams(max_tokens=500, temperature=0.0, ignore_eos=True)
            stream = engine.submit(Submit("r1", "alice", [1, 2, 3], sampling, arrival_s=0.0))
            for _ in range(3):
                await stream.__anext__()
            await stream.aclose()  # type: ignore[attr-defined]  # it has one
            for _ in range(2000):
                if told and engine.stats.clients.get("alice") and engine.stats.num_running == 0:
                    break
                await asyncio.sleep(0.01)
            return told, engine.stats.clients["alice"].service
        finally:
            await engine.close()

    told, charged = asyncio.run(main())
    ((request_id, usage),) = told
    assert request_id == "r1"
    assert usage.prompt_tokens == 3
    assert 3 <= usage.completion_tokens < 500
    assert usage.service == pytest.approx(charged)
