"""The console's server side: who sees what, what a step holds, and that nothing runs while nobody looks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping

import httpx
import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer

from evenflow.access.identity import Client
from evenflow.access.keys import hash_key
from evenflow.base.errors import InvalidKey
from evenflow.serving.client.messages import ClientStats, EngineStats
from evenflow.serving.server.app import create_app
from evenflow.serving.server.console.collector import KEPT_STEPS, Collector
from evenflow.serving.server.console.steps import OTHERS, Observed, own_step, spread, whole_step
from evenflow.serving.server.server_config import ServerConfig


def stats(**clients: float) -> EngineStats:
    return EngineStats(
        policy="fair",
        num_pages=100,
        num_free_pages=40,
        num_kv_pages=50,
        num_idle_cache_pages=20,
        num_adapter_pages=10,
        clients={name: ClientStats(service=service, num_running=1) for name, service in clients.items()},
    )


def test_a_step_shows_the_largest_and_adds_up_the_others() -> None:
    many = stats(**{f"c{n}": float(n) for n in range(50)})
    observed = {"c3": Observed([0.1, 0.3], 2), "c4": Observed([0.5], 0), "c49": Observed([1.0, 2.0, 3.0], 1)}
    step = whole_step(many, observed, {"named": 4.0}, 5.0, top=3)
    assert [row.name for row in step.clients] == ["c49", "c48", "c47", OTHERS]
    assert step.clients[0].first_tokens_s == [1.0, 2.0, 3.0]
    others = step.clients[-1]
    assert (others.num_clients, others.service, others.num_running) == (48, sum(range(47)), 47)
    assert others.first_tokens_s == [0.1, 0.3, 0.5]
    assert (others.num_rejected, step.num_rejected) == (2, 3)
    assert step.pages is not None
    assert (step.pages.free, step.pages.kv, step.pages.prefixes, step.pages.adapters) == (40, 30, 20, 10)


def test_clients_that_asked_for_nothing_are_shown_with_their_weights() -> None:
    step = whole_step(stats(a=1.0), {}, {"b": 4.0}, 0.0, top=5)
    assert [(row.name, row.weight) for row in step.clients] == [("a", 1.0), ("b", 4.0)]


def test_a_client_sees_itself_and_no_total() -> None:
    step = own_step(stats(a=1.0, b=2.0), {"b": Observed([0.5], 7)}, 2.0, 0.0, "a")
    shown = json.dumps([step.clients[0].name, step.num_running, step.num_rejected, step.policy, step.tokens_per_s])
    assert shown == '["a", 1, 0, "", 0.0]'
    assert step.pages is None


def test_spread_takes_the_nearest_rank() -> None:
    assert spread([]) == []
    assert spread([3.0]) == [3.0, 3.0, 3.0]
    assert spread(range(1, 101)) == [1, 51, 100]


class Watched:
    """A server whose clock is the test's: ``sleep`` returns when the test says so."""

    def __init__(self) -> None:
        self.now = stats(a=1.0)
        self.is_draining = False
        self.gate = asyncio.Semaphore(0)
        self.seconds = 1_000.0

    def engine_stats(self) -> EngineStats:
        return self.now

    def weights(self) -> Mapping[str, float]:
        return {}

    async def sleep(self, seconds: float) -> None:
        await self.gate.acquire()


async def steps_of(looks: AsyncGenerator[bytes, None]) -> list[dict]:
    return json.loads(await anext(looks))


def test_steps_are_taken_only_while_somebody_looks() -> None:
    async def scene() -> None:
        watched = Watched()
        collector = Collector(watched, lambda: watched.seconds, watched.sleep)
        collector.first_token("a", 0.1)
        assert not collector.is_running
        looks = collector.look(lambda: None)
        assert len(await steps_of(looks)) == 1
        assert collector.is_running
        for second in range(5):
            # The clock jumps back; steps go on.
            watched.seconds -= 100.0
            collector.first_token("a", 0.25)
            collector.rejected("b")
            waiting = asyncio.ensure_future(steps_of(looks))
            await asyncio.sleep(0)
            watched.gate.release()
            (step,) = await waiting
            assert {row[0]: row[9] for row in step["clients"]} == {"a": [0.25] * 3, "b": []}
            assert step["num_rejected"] == second + 1
        again = collector.look(lambda: None)
        assert len(await steps_of(again)) == 6, "who comes later finds the history"
        await looks.aclose()
        await again.aclose()
        for _ in range(60):
            assert collector.is_running
            watched.gate.release()
            for _ in range(4):
                await asyncio.sleep(0)
        assert not collector.is_running
        assert collector.num_steps == 0

    asyncio.run(scene())


def test_a_key_that_is_revoked_while_somebody_looks_ends_the_stream() -> None:
    async def scene() -> None:
        watched, keys = Watched(), {"bob"}

        def viewer() -> Client:
            if "bob" not in keys:
                raise InvalidKey("this API key is not known to the server")
            return Client("bob")

        collector = Collector(watched, lambda: 0.0, watched.sleep)
        looks = collector.look(viewer)
        (step,) = await steps_of(looks)
        assert [row[0] for row in step["clients"]] == ["bob"]
        keys.clear()
        waiting = asyncio.ensure_future(steps_of(looks))
        await asyncio.sleep(0)
        watched.gate.release()
        with pytest.raises(InvalidKey):
            await waiting
        await collector.close()

    asyncio.run(scene())


def test_history_is_bounded() -> None:
    async def scene() -> None:
        watched = Watched()
        collector = Collector(watched, lambda: 0.0, watched.sleep)
        looks = collector.look(lambda: None)
        await steps_of(looks)
        for _ in range(KEPT_STEPS + 5):
            watched.gate.release()
        for _ in range(6 * KEPT_STEPS):
            await asyncio.sleep(0)
        assert collector.num_steps == KEPT_STEPS
        await looks.aclose()
        await collector.close()

    asyncio.run(scene())


CLIENTS = """
[admin]
api_keys = ["{admin}"]
[clients."<img src=x onerror=alert(1)>"]
weight = 2.0
requests_per_minute = 60
api_keys = ["{bob}"]
[clients.carol]
api_keys = ["{carol}"]
"""


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    path = tmp_path_factory.mktemp("console") / "clients.toml"
    path.write_text(CLIENTS.format(**{name: hash_key(f"key-of-{name}") for name in ("admin", "bob", "carol")}))
    config = ServerConfig(served_model_names=("base",), clients_file=path)
    with LiveServer(create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), config)) as server:
        yield server


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-of-{name}"}


def test_everybody_sees_what_is_theirs(closed) -> None:
    with httpx.Client(base_url=closed.url) as http:
        assert http.get("/v1/console/who").status_code == 401
        assert http.get("/v1/console/steps").status_code == 401
        bob = http.get("/v1/console/who", headers=key("bob")).json()
        assert (bob["is_admin"], bob["client"], list(bob["weights"])) == (
            False,
            "<img src=x onerror=alert(1)>",
            [bob["client"]],
        )
        assert bob["limits"][bob["client"]]["requests_per_minute"] == 60
        admin = http.get("/v1/console/who", headers=key("admin")).json()
        assert (admin["is_admin"], set(admin["weights"])) == (True, {bob["client"], "carol"})
        for name, seen in (("bob", {bob["client"]}), ("carol", {"carol"}), ("admin", {bob["client"], "carol"})):
            with http.stream("GET", "/v1/console/steps", headers=key(name)) as stream:
                lines = stream.iter_lines()
                assert next(lines) == "event: steps"
                (step,) = json.loads(next(lines).removeprefix("data: "))
                assert {row[0] for row in step["clients"]} == seen


def test_pages_are_files_that_allow_nothing_from_elsewhere(closed) -> None:
    with httpx.Client(base_url=closed.url) as http:
        page = http.get("/console/")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "<script>" not in page.text
        assert " style=" not in page.text
        assert " on" not in page.text.replace(" one", "").replace(" only", "").replace(" or", "").replace(" on ", " "), (
            "no handlers"
        )
        assert http.get("/console/nothing.js").status_code == 404
        assert http.get("/console/../app.py").status_code == 404
        assert http.post("/console/").status_code == 405


def test_the_root_is_a_page_for_people_and_nothing_for_programs(closed) -> None:
    with httpx.Client(base_url=closed.url) as http:
        browser = http.get("/", headers={"accept": "text/html,application/xhtml+xml"})
        assert (browser.status_code, browser.headers["location"]) == (307, "console/")
        program = http.get("/", headers={"accept": "application/json"})
        assert program.status_code == 404
        assert "there is no GET /" in program.json()["error"]["message"]


def test_without_a_console_there_is_none() -> None:
    app = create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(console=False))
    assert not [route for route in app.routes if "console" in getattr(route, "path", "")]
