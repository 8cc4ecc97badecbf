"""Accounts of a live server: they equal what clients were told and what /metrics says, and each client sees its own."""

from __future__ import annotations

import re
from decimal import Decimal

import httpx
import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer, make_adapter

from evenflow.access.keys import hash_key
from evenflow.base.errors import ConfigError
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
