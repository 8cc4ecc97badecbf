"""Streams that end early: the client goes, the engine fails, or nothing is said for long."""

from __future__ import annotations

import asyncio
import json
import socket

import httpx
import openai
import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer, in_process

from evenflow.serving.client.messages import RequestOutput
from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig

TEXT = {"model": "base", "prompt": "hello", "max_tokens": 200}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(max_model_len=1024)


@pytest.fixture
def server(engine):
    app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(keepalive_s=0.05))
    with LiveServer(app) as server:
        yield server
        server.wait_for(lambda: server.state.num_in_flight == 0)
        server.state.limits.check_integrity()
        assert server.state.limits.num_waiting == 0
        assert engine.running == set()


def post(server: LiveServer, path: str, body: dict, read_until: bytes | None) -> None:
    """Send a request on a bare socket, read until the answer holds ``read_until``, and cut the line."""
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(
            b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (path.encode(), len(content), content)
        )
        got = b""
        while read_until is not None and read_until not in got:
            got += line.recv(4096)
        if read_until is None:
            server.wait_for(lambda: server.state.engine.submitted)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("has_begun", [True, False])
def test_a_client_that_goes_is_aborted(server, engine, n, stream, has_begun):
    """Queued or running, streaming or not, one completion or several."""
    if has_begun:
        engine.step_s = 0.02
    else:
        engine.gate.clear()
    body = {**TEXT, "prompt": "x" * 50, "stream": stream, "n": n}
    post(server, "/v1/completions", body, b'"text":"e"' if stream and has_begun else None)
    server.wait_for(lambda: len(engine.aborted) == n)
    assert sorted(engine.aborted) == sorted(submit.request_id for submit in engine.submitted)
    metrics = server.http.get("/metrics").text
    assert f'finished_reason="abort",model_name="base"}} {float(n)}' in metrics


def test_a_client_that_goes_while_it_sends_its_body(server, engine):
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b'content-length: 1000\r\n\r\n{"model": '
        )
    assert server.http.post("/v1/completions", json=TEXT).status_code == 200
    assert len(engine.submitted) == 1


def test_an_error_in_the_middle_is_an_event_and_the_end(server, engine):
    engine.fail_with = RequestOutput("", error_type="EngineDead", error="the engine ended")
    engine.fail_at = 3
    with server.http.stream("POST", "/v1/completions", json={**TEXT, "stream": True}) as response:
        events = response.read().decode().strip().split("\n\n")
    assert response.status_code == 200
    assert len(events) == 4
    assert json.loads(events[-1].removeprefix("data: "))["error"] == {
        "message": "the engine ended",
        "type": "server_error",
        "param": None,
        "code": "engine_dead",
    }
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIError, match="the engine ended"):
        list(client.completions.create(**TEXT, stream=True))
    client.close()


def test_one_failing_choice_aborts_the_others(server, engine):
    engine.fail_with = RequestOutput("", error_type="EvenFlowError", error="not finite")
    engine.fail_at = 2
    engine.step_s = 0.01
    response = server.http.post("/v1/completions", json={**TEXT, "n": 3})
    assert response.status_code == 500
    assert engine.running == set()


def test_silence_is_broken_by_comments_that_clients_ignore(server, engine):
    engine.gate.clear()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    stream = client.completions.create(**TEXT, stream=True)  # returns once the keep-alive has sent the status
    server.call(engine.gate.set)
    assert "".join(chunk.choices[0].text for chunk in stream) == "[base] hello"
    client.close()


def test_a_slow_reader_gets_everything_in_order(server, engine):
    with server.http.stream("POST", "/v1/completions", json={**TEXT, "prompt": "y" * 100, "stream": True}) as response:
        text = ""
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
    assert text == "[base] " + "y" * 100


def test_forty_clients_are_killed_and_the_others_are_served(server, engine):
    engine.step_s = 0.002

    async def main() -> list[str]:
        async with httpx.AsyncClient(timeout=30) as client:

            async def killed(i: int) -> None:
                async with client.stream(
                    "POST", f"{server.url}/v1/completions", json={**TEXT, "prompt": "k" * 150, "stream": True}
                ) as response:
                    async for _ in response.aiter_lines():
                        if i % 2:
                            return
                        i += 1

            async def served(i: int) -> str:
                response = await client.post(f"{server.url}/v1/completions", json={**TEXT, "prompt": f"s{i}"})
                return response.json()["choices"][0]["text"]

            results = await asyncio.gather(*(killed(i) for i in range(40)), *(served(i) for i in range(10)))
            return results[40:]

    assert asyncio.run(main()) == [f"[base] s{i}" for i in range(10)]
    server.wait_for(lambda: len(engine.aborted) == 40)


def test_cancelling_the_work_leaves_nothing_behind():
    """The same in process: the task that serves is cancelled at every point it can be."""

    async def main() -> None:
        engine = FakeEngine()
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig())
        async with in_process(app) as client:
            for num_yields in range(60):
                task = asyncio.create_task(client.post("/v1/completions", json={**TEXT, "n": 2, "stream": num_yields % 2 == 0}))
                for _ in range(num_yields):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                state = app.state.server
                state.limits.check_integrity()
                assert state.num_in_flight == 0
                assert state.limits.num_waiting == 0
                assert engine.running == set()
            assert len(engine.submitted) > 40

    asyncio.run(main())
