"""The console's server side: who sees what, what it costs when nobody looks, and that its built files are current."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer, busy_stats, in_process

from evenflow.access.keys import hash_key
from evenflow.base.errors import InvalidKey
from evenflow.serving.client.messages import ClientStats, EngineStats
from evenflow.serving.server.app import create_app
from evenflow.serving.server.console.collector import MOST_STEPS, Collector
from evenflow.serving.server.console.steps import MOST_ROWS, Heard, make_step
from evenflow.serving.server.metrics.metrics_page import Metrics
from evenflow.serving.server.server_config import ServerConfig

ROOT = Path(__file__).parents[3]
ASSETS = ROOT / "src/evenflow/serving/server/console/assets"
CLIENTS = """
[admin]
api_keys = ["{admin}"]
[clients.alice]
weight = 2.0
requests_per_minute = 60
api_keys = ["{alice}"]
[clients.bob]
api_keys = ["{bob}"]
"""


def collector(engine: FakeEngine, **options: Any) -> tuple[Collector, Metrics]:
    metrics = Metrics(engine, "base", "1", 50)
    return Collector(engine, metrics, **options), metrics


def steps_in(text: str) -> list[dict[str, Any]]:
    return [json.loads(part.split("data: ")[1]) for part in text.split("\n\n") if part.startswith("event: step")]


def keys_file(folder: Path, alice: str = "key-a") -> Path:
    file = folder / "clients.toml"
    file.write_text(CLIENTS.format(admin=hash_key("key-admin"), alice=hash_key(alice), bob=hash_key("key-b")))
    return file


def test_it_ticks_only_while_somebody_watches() -> None:
    async def main() -> None:
        console, metrics = collector(FakeEngine(), step_s=0.01)
        assert not console.is_ticking
        one, two = (console.watch(None, lambda: None) for _ in range(2))
        for _ in range(3):
            await anext(one)
        await anext(two)
        assert console.is_ticking
        assert metrics.listener is console
        await one.aclose()
        assert console.is_ticking
        await two.aclose()
        assert not console.is_ticking
        assert metrics.listener is None
        kept = console.num_steps
        await asyncio.sleep(0.05)
        assert console.num_steps == kept

    asyncio.run(main())


def test_a_client_sees_its_own_row_and_nothing_of_the_whole() -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.stats_now = EngineStats(clients={"alice": ClientStats(service=5), "bob-secret": ClientStats(service=9)})
        console, _ = collector(engine, step_s=0.01)
        stream = console.watch("alice", lambda: None)
        text = "".join([(await anext(stream)).decode() for _ in range(4)])
        await stream.aclose()
        steps = steps_in(text)
        assert steps
        assert all(step["whole"] is None and [row[0] for row in step["rows"]] == ["alice"] for step in steps)
        assert "bob" not in text

    asyncio.run(main())


def test_a_viewer_that_may_see_no_more_is_told_within_a_step() -> None:
    async def main() -> None:
        console, _ = collector(FakeEngine(), step_s=0.01)

        def refuse() -> None:
            raise InvalidKey("this API key is not known to the server")

        stream = console.watch(None, refuse)
        await anext(stream)
        with pytest.raises(InvalidKey):
            await anext(stream)
        assert not console.is_ticking

    asyncio.run(main())


def test_thousands_of_clients_become_rows_of_the_busiest_and_a_sum() -> None:
    stats = EngineStats(clients={f"c{number}": ClientStats(service=number, num_waiting=1) for number in range(5000)})
    step, _ = make_step(0.0, stats, Heard({}, {}), ())
    assert [row.name for row in step.rows] == [f"c{number}" for number in range(4999, 4999 - MOST_ROWS, -1)]
    assert step.whole is not None
    assert step.whole.others is not None
    assert step.whole.others.service + sum(row.service for row in step.rows) == sum(range(5000))
    assert step.whole.others.num_waiting == 5000 - MOST_ROWS


def test_steps_are_bounded_and_their_clock_does_not_jump_with_the_walls() -> None:
    now, wall = [0.0], [1000.0]
    console, _ = collector(FakeEngine(), clock=lambda: now[0], unix_time=lambda: wall[0])
    for second in range(MOST_STEPS + 50):
        now[0], wall[0] = float(second), 1000.0 - second
        console.tick()
    assert console.num_steps == MOST_STEPS
    times = [step["t"] for step in steps_in(console._history(None).decode())]
    assert times == sorted(times)
    assert times[-1] == 1000.0 + MOST_STEPS + 49


def test_first_tokens_and_rejections_are_heard() -> None:
    console, _ = collector(FakeEngine())
    for seconds in range(1, 101):
        console.first_token("a", seconds / 100)
    console.rejected("a")
    console.tick()
    console.tick()
    first, second = steps_in(console._history(None).decode())
    assert first["whole"]["ttft_s"] == [0.51, 0.96]
    assert second["whole"]["ttft_s"] == []
    assert first["whole"]["rejected"] == second["whole"]["rejected"] == 1


def make_app(**options: Any) -> Any:
    return create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(**options))


def test_only_browsers_are_led_to_the_page_and_its_policy_is_strict() -> None:
    async def main() -> None:
        async with in_process(make_app()) as http:
            assert (await http.get("/")).json()["error"]["message"].startswith("there is no GET / here")
            led = await http.get("/", headers={"accept": "text/html,*/*"}, follow_redirects=False)
            assert led.status_code == 307
            assert led.headers["location"] == "console/"
            page = await http.get("/console/")
            policy = page.headers["content-security-policy"]
            assert "unsafe" not in policy
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "<script>" not in page.text
            assert "style=" not in page.text
            assert "http" not in page.text
            assert (await http.get("/console/console.js")).headers["content-type"].startswith("text/javascript")
            assert (await http.get("/console/..%2fsteps.py")).status_code == 404

    asyncio.run(main())


def test_without_the_console_its_paths_are_unknown() -> None:
    async def main() -> None:
        async with in_process(make_app(console=False)) as http:
            for path in ("/console/", "/console/events", "/"):
                assert (await http.get(path, headers={"accept": "text/html"})).status_code == 404

    asyncio.run(main())


def test_limits_are_shown_to_their_owner_and_to_administrators(tmp_path: Path) -> None:
    async def main() -> None:
        async with in_process(make_app(clients_file=keys_file(tmp_path))) as http:

            async def names(key: str) -> list[str]:
                answer = await http.get("/console/clients", headers={"authorization": f"Bearer {key}"})
                return [client["name"] for client in answer.json()["clients"]]

            assert await names("key-admin") == ["alice", "bob"]
            assert await names("key-a") == ["alice"]
            for path in ("/console/clients", "/console/events"):
                assert (await http.get(path)).status_code == 401
                assert (await http.get(path, headers={"authorization": "Bearer wrong"})).status_code == 401

    asyncio.run(main())


def test_a_key_revoked_while_its_stream_is_open_ends_it_with_a_reason(tmp_path: Path) -> None:
    app = make_app(clients_file=keys_file(tmp_path))
    app.state.server.engine.stats_now = busy_stats()
    with LiveServer(app) as server:
        headers = {"authorization": "Bearer key-a"}
        with httpx.stream("GET", f"{server.url}/console/events", headers=headers, timeout=10) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: hello"
            assert json.loads(next(lines)[6:])["client"] == "alice"
            keys_file(tmp_path, alice="another")
            asyncio.run_coroutine_threadsafe(app.state.server.reload_clients(), server.loop).result(5)
            rest = list(lines)
    assert "event: refused" in rest
    assert json.loads(rest[rest.index("event: refused") + 1][6:])["status"] == 401


def test_the_built_files_are_those_of_their_sources() -> None:
    sources = ROOT / "console"
    if not sources.is_dir():
        pytest.skip("no sources beside this package")
    listed = subprocess.run(["git", "ls-files", "src", "package-lock.json"], cwd=sources, capture_output=True, text=True)
    names = sorted(listed.stdout.split()) or sorted(
        [*(f"src/{f.name}" for f in (sources / "src").iterdir()), "package-lock.json"]
    )
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + (sources / name).read_bytes() + b"\0")
    assert digest.hexdigest() == (ASSETS / "sources.sha256").read_text().strip(), "run make console"
    assert sum(file.stat().st_size for file in ASSETS.iterdir()) < 300_000
