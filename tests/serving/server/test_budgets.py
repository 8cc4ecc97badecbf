"""Monthly budgets of a live server: refused or slowed, renewed, kept over restarts, edited while it runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer

from evenflow.access.identity import read_directory
from evenflow.access.keys import hash_key
from evenflow.base.errors import ConfigError
from evenflow.serving.server.api import state as state_module
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.app import build_app
from evenflow.serving.server.server_config import ServerConfig

HARD = "tokens_per_month = 20\n"
SOFT = 'tokens_per_month = 20\nover_budget = "slow"\nover_budget_weight = 0.25\nweight = 2.0\n'
BODY: dict[str, Any] = {"model": "base", "prompt": "abcd", "max_tokens": 6}


class Place:
    """A folder with clients, prices and accounts, and a clock; ``serve`` starts a server on them."""

    def __init__(self, folder, of_alice: str) -> None:
        self.folder = folder
        self.now_s = datetime(2026, 12, 31, 23, 0, tzinfo=UTC).timestamp()
        self.write(of_alice)
        (folder / "prices.toml").write_text('[prices.base]\nprompt = "1000"\ncompletion = "2000"\n')

    def write(self, of_alice: str) -> None:
        keys = {name: hash_key(f"key-of-{name}") for name in ("alice", "bob", "admin")}
        (self.folder / "clients.toml").write_text(
            f'[admin]\napi_keys = ["{keys["admin"]}"]\n[clients.alice]\napi_keys = ["{keys["alice"]}"]\n{of_alice}'
            f'[clients.bob]\napi_keys = ["{keys["bob"]}"]\n'
        )

    def config(self, **options: Any) -> ServerConfig:
        given = {"accounts": str(self.folder / "usage.sqlite"), "prices": self.folder / "prices.toml", **options}
        return ServerConfig(served_model_names=("base",), clients_file=self.folder / "clients.toml", **given)

    def serve(self) -> tuple[FakeEngine, LiveServer]:
        engine = FakeEngine()
        state = ServerState(engine, FakeTokenizer(), FakeTemplate(), self.config(), unix_time=lambda: self.now_s)
        return engine, LiveServer(build_app(state, {}))


def ask(live: LiveServer, name: str = "alice") -> httpx.Response:
    return live.http.post("/v1/completions", json=BODY, headers=key(name))


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-of-{name}"}


def test_a_spent_budget_refuses_until_the_month_ends_also_after_a_restart(tmp_path):
    place = Place(tmp_path, HARD)
    _, live = place.serve()
    with live:  # a prompt of 5 tokens with its BOS, and 6 tokens of output
        assert [ask(live).status_code for _ in range(3)] == [200, 200, 429]
        assert ask(live, "bob").status_code == 200
        metrics = live.http.get("/metrics").text
    assert 'evenflow_client_budget_used{client="alice"} 1.1' in metrics
    assert "evenflow_clients_over_budget 1.0" in metrics
    assert 'vllm:admission_rejections_total{engine="0",model_name="base",reason="budget"} 1.0' in metrics
    _, again = place.serve()
    with again:
        refused = ask(again)
        told = refused.json()["error"]
        assert (refused.status_code, told["code"], told["type"]) == (429, "insufficient_quota", "insufficient_quota")
        assert told["message"] == (
            "client 'alice' has used its budget of this month (22 of 20 tokens); it renews at 2027-01-01T00:00:00Z"
        )
        assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("3600", "false")
        usage = again.http.get("/v1/usage", headers=key("alice")).json()["budgets"]
        assert usage == [
            {
                "client": "alice",
                "used_tokens": 22,
                "tokens": 20,
                "used_cost": "0.034",
                "cost": None,
                "renews": "2027-01-01T00:00:00Z",
                "is_spent": True,
                "over_budget": "refuse",
            }
        ]
        assert again.http.get("/v1/usage", headers=key("bob")).json()["budgets"] == []
        assert len(again.http.get("/v1/admin/usage", headers=key("admin")).json()["budgets"]) == 1
        place.now_s += 3600
        assert ask(again).status_code == 200
        assert again.http.get("/v1/usage", headers=key("alice")).json()["budgets"][0]["used_tokens"] == 11


def test_a_soft_budget_lets_the_weight_fall_and_rise_again(tmp_path, monkeypatch):
    monkeypatch.setattr(state_module, "BUDGETS_S", 0.02)
    place = Place(tmp_path, SOFT)
    engine, live = place.serve()
    with live:
        assert engine.weights == {"alice": 2.0}
        assert [ask(live).status_code for _ in range(3)] == [200, 200, 200]
        LiveServer.wait_for(lambda: engine.weights == {"alice": 0.5})
        assert live.http.get("/v1/usage", headers=key("alice")).json()["budgets"][0]["over_budget"] == "slow"
        place.now_s += 3600
        LiveServer.wait_for(lambda: engine.weights == {"alice": 2.0})


def test_a_budget_that_is_edited_counts_at_once(tmp_path, monkeypatch, caplog):
    place = Place(tmp_path, HARD)
    _, live = place.serve()

    def reload() -> None:
        before = live.state.directory
        live.call(lambda: live.loop.create_task(live.state.reload_clients()))
        LiveServer.wait_for(lambda: live.state.directory is not before)

    with live:
        assert [ask(live).status_code for _ in range(3)] == [200, 200, 429]
        place.write("tokens_per_month = 30\n")
        reload()
        assert [ask(live).status_code for _ in range(2)] == [200, 429]
        place.write('cost_per_month = "0.07"\n')  # 33 tokens cost 15 * 0.001 + 18 * 0.002 = 0.051
        reload()
        assert [ask(live).status_code for _ in range(3)] == [200, 200, 429]
        assert "0.085 of 0.07 by the prices" in ask(live).json()["error"]["message"]
        place.write("")
        reload()
        assert ask(live).status_code == 200
        place.write("tokens_per_month = 0\n")
        live.call(lambda: live.loop.create_task(live.state.reload_clients()))
        LiveServer.wait_for(lambda: "clients are as before" in caplog.text)
        assert ask(live).status_code == 200


@pytest.mark.parametrize(
    ("of_alice", "why"),
    [
        ('cost_per_month = "-1"\n', r"clients\.alice\.cost_per_month is '-1'; allowed: an amount above 0"),
        ('cost_per_month = "ten"\n', "cost_per_month is 'ten'"),
        ("cost_per_month = nan\n", "cost_per_month is 'nan'"),
        ('over_budget = "slow"\n', "over_budget is given without a budget"),
        ("tokens_per_month = 5\nover_budget_weight = 0.5\n", "allowed with over_budget = 'slow'"),
        ('tokens_per_month = 5\nover_budget = "stop"\n', "Invalid enum value 'stop'"),
        ('tokens_per_month = 5\nover_budget = "slow"\nover_budget_weight = 0.0\n', "Expected `?float`? > 0"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(tmp_path, of_alice, why):
    place = Place(tmp_path, of_alice)
    with pytest.raises(ConfigError, match=why):
        read_directory(place.folder / "clients.toml")


def test_budgets_that_nobody_could_keep_are_refused(tmp_path):
    place = Place(tmp_path, HARD)
    with pytest.raises(ConfigError, match="'alice' has a budget, which is kept with the accounts: give --accounts"):
        ServerState(FakeEngine(), FakeTokenizer(), FakeTemplate(), place.config(accounts=""))
    place.write("cost_per_month = 5\n")
    with pytest.raises(ConfigError, match="'alice' has a budget in money, by the prices: give --prices"):
        ServerState(FakeEngine(), FakeTokenizer(), FakeTemplate(), place.config(prices=None))
