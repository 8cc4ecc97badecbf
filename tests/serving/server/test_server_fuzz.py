"""Malformed bodies by the thousand, made from our own OpenAPI document: never a 5xx, never a 422, never a leak.

A body starts as a good one; then fields of the document are set to values of every JSON type, dropped or
doubled, and sometimes the bytes themselves are cut or changed.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, in_process, make_adapter

from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig

GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    "/v1/completions": {"model": "base", "prompt": "hi", "max_tokens": 3},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
    "/v1/load_lora_adapter": {"lora_name": "x", "lora_path": "nowhere"},
    "/v1/unload_lora_adapter": {"lora_name": "x"},
    "/load_lora_adapter": {"lora_name": "x", "lora_path": "nowhere"},
    "/unload_lora_adapter": {"lora_name": "x"},
    "/adapters": {"name": "x", "src": "nowhere"},
}
SPECIAL = (
    None,
    True,
    0,
    1,
    -1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**40,
    0.5,
    1e308,
    "",
    "base",
    "\0",
    "\ud800",
    "../..",
    "x" * 5000,
    [],
    [[]],
    {},
    [None],
    [0, "a"],
    [[1], [2]],
    {"type": "text"},
)
VALUES = st.one_of(
    st.sampled_from(SPECIAL),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.builds(lambda inner: [inner, 1], st.sampled_from(SPECIAL)),
    st.builds(lambda key, inner: {key: inner}, st.text(max_size=8), st.sampled_from(SPECIAL)),
)


def properties_of(document: dict[str, Any], path: str) -> list[str]:
    """Names of every property that the document knows for the body of ``path``, nested ones too."""
    schemas = document["components"]["schemas"]
    reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    return sorted(schemas[reference.rsplit("/", 1)[1]]["properties"])


@st.composite
def bodies(draw: Any, document: dict[str, Any]) -> tuple[str, bytes]:
    path = draw(st.sampled_from(sorted(GOOD)))
    body = dict(GOOD[path])
    names = st.one_of(st.sampled_from(properties_of(document, path)), st.text(max_size=12))
    for name in draw(st.lists(names, min_size=1, max_size=4)):
        if draw(st.integers(0, 9)) == 0:
            body.pop(name, None)
        else:
            body[name] = draw(VALUES)
    if path == "/v1/chat/completions" and draw(st.booleans()):
        message = dict.fromkeys(("role", "content", "name", "tool_calls"))
        message = {key: draw(VALUES) for key in message if draw(st.booleans())}
        body["messages"] = [{"role": "user", "content": "x"}, {"role": "user", "content": "x", **message}]
    content = json.dumps(body).encode()
    if draw(st.integers(0, 7)) == 0:
        cut = draw(st.integers(0, len(content)))
        content = content[:cut] + draw(st.binary(max_size=6)) + content[cut + draw(st.integers(0, 6)) :]
    return path, content


def check(answer: Any, path: str, content: bytes) -> None:
    where = (path, content, answer.status_code, answer.text[:300])
    assert answer.status_code in (200, 400, 404), where
    if answer.headers["content-type"] == "application/json":
        body = answer.json()
        if answer.status_code != 200 and "success" not in body:
            error = body["error"]
            assert error["message"], where
            assert error["type"] == "invalid_request_error", where
    assert answer.headers["x-request-id"], where
    assert "Traceback" not in answer.text, where


def fuzz(num_bodies: int, tmp_path: Path) -> None:
    """One server for all bodies: what one of them breaks would show in the next."""
    with asyncio.Runner() as runner:
        engine = FakeEngine(max_model_len=64)
        config = ServerConfig(served_model_names=("base",), adapter_dir=tmp_path, max_choices=16)
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), config, {"a": make_adapter(tmp_path, "a")})
        context = in_process(app)
        client = runner.run(context.__aenter__())
        document = runner.run(client.get("/openapi.json")).json()
        statuses: dict[int, int] = {}

        @seed(20)
        @settings(
            max_examples=num_bodies,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(bodies(document))
        def one(made: tuple[str, bytes]) -> None:
            path, content = made
            answer = runner.run(client.post(path, content=content, headers={"content-type": "application/json"}))
            check(answer, path, content)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            state = app.state.server
            assert state.num_in_flight == 0
            assert state.limits.num_waiting == 0
            assert not engine.running

        one()
        app.state.server.limits.check_integrity()
        good = {"model": "a", "prompt": "still here"}
        assert runner.run(client.post("/v1/completions", json=good)).json()["choices"][0]["text"] == "[a] still here"
        assert set(engine.infos) == {"a"}
        assert statuses[400] > num_bodies / 3, statuses
        assert statuses[200] > num_bodies / 50, statuses
        runner.run(context.__aexit__(None, None, None))


def test_hundreds_of_malformed_bodies(tmp_path):
    fuzz(500, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_malformed_bodies(tmp_path):
    fuzz(10_000, tmp_path)


def test_the_document_describes_what_is_served(tmp_path):
    async def main() -> None:
        app = create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig())
        async with in_process(app) as client:
            document = (await client.get("/openapi.json")).json()
            assert (await client.get("/docs")).status_code == 200
        text = json.dumps(document)
        assert "422" not in text
        for reference in {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
            assert reference in document["components"]["schemas"]
        assert set(GOOD) <= set(document["paths"])
        for path in ("/v1/chat/completions", "/v1/completions"):
            operation = document["paths"][path]["post"]
            assert set(operation["responses"]) == {"200", "400", "401", "403", "404", "408", "413", "415", "429", "503"}
            assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
        fields = document["components"]["schemas"]["ChatCompletionRequest"]
        assert fields["required"] == ["messages"]
        assert fields["properties"]["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 100}

    asyncio.run(main())
