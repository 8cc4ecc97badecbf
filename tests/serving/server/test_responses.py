"""/v1/responses through OpenAI's own client: texts, calls, thoughts, streams; what needs a memory is refused."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer

from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig

PRICE: dict[str, Any] = {
    "type": "function",
    "name": "price",
    "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
    "strict": True,
}
SAID = '<think>cake?</think>\nLet me see.\n<tool_call>\n{"name": "price", "arguments": {"what": "cake"}}\n</tool_call>'


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(max_model_len=4096)


@pytest.fixture
def client(engine):
    app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(reasoning_parser="qwen3"))
    with LiveServer(app) as server:
        yield openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0)


def says(engine: FakeEngine, text: str) -> None:
    engine.answer = lambda submit: text


def test_a_text(client, engine):
    says(engine, "Six shells.")
    response = client.responses.create(model="base", input="How much?", instructions="Be brief.")
    assert response.output_text == "Six shells."
    assert (response.status, response.usage.output_tokens) == ("completed", 11)
    assert FakeTokenizer().decode(engine.submitted[0].prompt_token_ids).startswith("<system>Be brief.<user>How much?")


def test_thoughts_text_and_a_call(client, engine):
    says(engine, SAID)
    response = client.responses.create(model="base", input="How much?", tools=[PRICE])
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.output[0].content[0].text == "cake?"
    assert response.output_text == "Let me see."
    call = response.output[2]
    assert (call.name, json.loads(call.arguments), call.status) == ("price", {"what": "cake"}, "completed")


def test_the_conversation_goes_on_with_the_result(client, engine):
    says(engine, "Six.")
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "How much?"}]},
        {"type": "reasoning", "id": "rs", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "price", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "6"},
    ]
    assert client.responses.create(model="base", input=items, tools=[PRICE]).output_text == "Six."
    assert "<tool>6" in FakeTokenizer().decode(engine.submitted[0].prompt_token_ids)


def test_a_streams_events_agree_with_the_whole(client, engine):
    says(engine, SAID)
    with client.responses.stream(model="base", input="How much?", tools=[PRICE]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Let me see."
    assert "".join(e.delta for e in events if e.type == "response.reasoning_text.delta") == "cake?"
    deltas = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    assert json.loads(deltas) == {"what": "cake"}
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 3


def test_a_schema_and_a_length(client, engine):
    says(engine, '{"n": 1}')
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    response = client.responses.create(model="base", input="x", text={"format": form}, max_output_tokens=3)
    assert engine.submitted[0].sampling.structured_outputs.json == '{"type":"object"}'
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": []}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c9", "output": "6"}]}, "messages"),
        ({"text": {"format": {"type": "yaml"}}}, "response_format"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
    ],
)
def test_what_cannot_be_is_named(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": "base", "input": "x", **fields})
    assert caught.value.param == param
