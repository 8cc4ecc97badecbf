"""/v1/messages as Anthropic defines it: blocks, tools, events, errors and the count of tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer

from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig

PRICE: dict[str, Any] = {
    "name": "price",
    "description": "What it costs.",
    "input_schema": {"type": "object", "properties": {"what": {"type": "string"}}},
}
ASK: dict[str, Any] = {"model": "base", "max_tokens": 500, "messages": [{"role": "user", "content": "How much?"}]}
SAID = '<think>cake?</think>\nLet me see.\n<tool_call>\n{"name": "price", "arguments": {"what": "cake"}}\n</tool_call>'


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(max_model_len=4096)


@pytest.fixture
def server(engine):
    app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(reasoning_parser="qwen3"))
    with LiveServer(app) as server:
        yield server


def says(engine: FakeEngine, text: str) -> None:
    engine.answer = lambda submit: text


def test_blocks_of_thoughts_text_and_a_call(server, engine):
    says(engine, SAID)
    message = server.http.post("/v1/messages", json={**ASK, "tools": [PRICE], "system": "Be brief."}).json()
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use"]
    assert message["content"][2]["input"] == {"what": "cake"}
    assert (message["stop_reason"], message["type"], message["role"]) == ("tool_use", "message", "assistant")
    assert FakeTokenizer().decode(engine.submitted[0].prompt_token_ids).startswith("<system>Be brief.<user>How much?")


def test_an_answers_format_is_its_constraint(server, engine):
    says(engine, '{"n": 1}')
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    body = {**ASK, "output_config": {"format": {"type": "json_schema", "schema": schema}}}
    assert server.http.post("/v1/messages", json=body).json()["content"][0]["text"] == '{"n": 1}'
    constraint = engine.submitted[0].sampling.structured_outputs
    assert json.loads(constraint.json) == schema
    for wrong in ({"type": "json_schema"}, {"type": "poem"}, {"schema": schema}):
        refused = server.http.post("/v1/messages", json={**ASK, "output_config": {"format": wrong}})
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


def test_results_go_on_with_the_conversation(server, engine):
    says(engine, "Six.")
    history = [
        *ASK["messages"],
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "price", "input": {"what": "cake"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "6"}]}]},
    ]
    message = server.http.post("/v1/messages", json={**ASK, "messages": history, "tools": [PRICE]}).json()
    assert (message["content"], message["stop_reason"]) == ([{"type": "text", "text": "Six."}], "end_turn")
    assert "<tool>6" in FakeTokenizer().decode(engine.submitted[0].prompt_token_ids)


def test_a_streams_events_follow_each_other(server, engine):
    says(engine, SAID)
    with server.http.stream("POST", "/v1/messages", json={**ASK, "tools": [PRICE], "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [event["type"] for event in events] == names
    assert names[:2] == ["message_start", "ping"]
    assert names[-2:] == ["message_delta", "message_stop"]
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [start["content_block"]["type"] for start in starts] == ["thinking", "text", "tool_use"]
    assert [start["index"] for start in starts] == [0, 1, 2]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == "Let me see."
    assert json.loads("".join(delta.get("partial_json", "") for delta in deltas)) == {"what": "cake"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] == len(SAID)


@pytest.mark.parametrize(
    ("fields", "reason", "sequence"),
    [({"max_tokens": 3}, "max_tokens", None), ({"stop_sequences": ["ells"]}, "stop_sequence", "ells"), ({}, "end_turn", None)],
)
def test_why_it_stopped(server, engine, fields, reason, sequence):
    says(engine, "Six shells.")
    message = server.http.post("/v1/messages", json={**ASK, **fields}).json()
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'image'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"tools": [PRICE], "tool_choice": {"type": "perhaps"}}, "tool_choice"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "bash_20250124"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t9"}]}]}, "t9"),
    ],
)
def test_errors_are_anthropics(server, fields, message):
    answer = server.http.post("/v1/messages", json={**ASK, **fields})
    assert answer.status_code == 400
    assert (answer.json()["type"], answer.json()["error"]["type"]) == ("error", "invalid_request_error")
    assert message in answer.json()["error"]["message"]


def test_tokens_are_counted_as_the_message_would_have_them(server, engine):
    body = {key: value for key, value in ASK.items() if key != "max_tokens"}
    counted = server.http.post("/v1/messages/count_tokens", json={**body, "tools": [PRICE]}).json()["input_tokens"]
    message = server.http.post("/v1/messages", json={**ASK, "tools": [PRICE]}).json()
    assert message["usage"]["input_tokens"] == counted


def test_the_key_may_come_in_anthropics_header(engine):
    app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(api_keys=("sk-1",)))
    with LiveServer(app) as server:
        assert server.http.post("/v1/messages", json=ASK).status_code == 401
        assert server.http.post("/v1/messages", json=ASK, headers={"x-api-key": "sk-2"}).status_code == 401
        assert server.http.post("/v1/messages", json=ASK, headers={"x-api-key": "sk-1"}).status_code == 200
