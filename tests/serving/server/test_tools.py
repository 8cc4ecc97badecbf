"""Tools and structured outputs through OpenAI's own client, with an engine whose answers are known."""

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
    "function": {
        "name": "price",
        "description": "What it costs.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]},
    },
}
CALL = 'Let me see.\n<tool_call>\n{"name": "price", "arguments": {"what": "cake"}}\n</tool_call>'
ASK: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "How much is cake?"}]}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(max_model_len=4096)


@pytest.fixture
def server(engine):
    app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(reasoning_parser="qwen3"))
    with LiveServer(app) as server:
        yield server


@pytest.fixture
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0)


def says(engine: FakeEngine, text: str) -> None:
    engine.answer = lambda submit: text


def test_a_call_comes_back_as_openai_defines_it(client, engine):
    says(engine, "<think>cake?</think>\n\n" + CALL)
    choice = client.chat.completions.create(**ASK, tools=[PRICE]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert choice.message.reasoning_content == "cake?"
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "price", {"what": "cake"})
    assert call.id.startswith("call-")
    sampling = engine.submitted[0].sampling
    assert not sampling.skip_special_tokens
    assert "<tool_call>" in sampling.structured_outputs.grammar
    prompt = FakeTokenizer().decode(engine.submitted[0].prompt_token_ids)
    assert "'name': 'price'" in prompt


def test_a_stream_tells_the_name_first_and_the_arguments_as_they_come(client, engine):
    says(engine, CALL)
    text, arguments, names, reasons = "", "", [], []
    for chunk in client.chat.completions.create(**ASK, tools=[PRICE], stream=True):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons.append(choice.finish_reason)
            for call in choice.delta.tool_calls or ():
                if call.function.name:
                    names.append((call.index, call.function.name, call.type))
                arguments += call.function.arguments or ""
                assert names, "the name comes first"
    assert (text, json.loads(arguments), names) == ("Let me see.", {"what": "cake"}, [(0, "price", "function")])
    assert [reason for reason in reasons if reason] == ["tool_calls"]
    assert None in reasons


def test_a_malformed_call_is_text_and_no_error(client, engine):
    says(engine, "<tool_call>{price of cake}</tool_call>")
    choice = client.chat.completions.create(**ASK, tools=[PRICE]).choices[0]
    assert choice.finish_reason == "stop"
    assert not choice.message.tool_calls
    assert "{price of cake}" in choice.message.content


def test_a_conversation_with_calls_and_results_reaches_the_template(client, engine):
    says(engine, "Six shells.")
    call = {"id": "c1", "type": "function", "function": {"name": "price", "arguments": '{"what": "cake"}'}}
    history = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "6"},
    ]
    answer = client.chat.completions.create(model="base", messages=history, tools=[PRICE], tool_choice="none")
    assert answer.choices[0].message.content == "Six shells."
    assert engine.submitted[0].sampling.structured_outputs is None
    assert "<tool>6" in FakeTokenizer().decode(engine.submitted[0].prompt_token_ids)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {}}]}, "tools"),
        ({"tools": [PRICE], "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [PRICE], "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"messages": [{"role": "tool", "tool_call_id": "c9", "content": "6"}]}, "messages"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"extra_body": {"guided_regex": "a", "guided_choice": ["a"]}}, "guided_choice"),
        ({"extra_body": {"structured_outputs": {}}}, "structured_outputs"),
    ],
)
def test_what_is_wrong_is_named(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**ASK, **fields})
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", True),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}}}, "json", '{"a":1}'),
        ({"extra_body": {"structured_outputs": {"regex": "a+"}}}, "regex", "a+"),
        ({"extra_body": {"structured_outputs": {"choice": ["a", "b"]}}}, "choice", '["a","b"]'),
        ({"extra_body": {"guided_json": {"type": "integer"}}}, "json", '{"type":"integer"}'),
        ({"extra_body": {"guided_grammar": "start: /a/"}}, "grammar", "start: /a/"),
        ({"extra_body": {"regex": "a"}}, "regex", "a"),
        ({"extra_body": {"ebnf": 'root ::= "a"'}}, "grammar", 'root ::= "a"'),
        ({"extra_body": {"json_schema": '{"type":"null"}'}}, "json", '{"type":"null"}'),
    ],
)
def test_every_name_of_a_constraint_means_the_same(client, engine, fields, kind, text):
    client.chat.completions.create(**ASK, **fields)
    client.completions.create(model="base", prompt="x", **fields) if "extra_body" in fields else None
    for submit in engine.submitted:
        assert (submit.sampling.structured_outputs.kind, getattr(submit.sampling.structured_outputs, kind)) == (kind, text)


def test_a_template_without_a_place_for_tools_is_said(engine):
    template = FakeTemplate()
    template.source = "{{ messages }}"
    with LiveServer(create_app(engine, FakeTokenizer(), template, ServerConfig())) as server:
        answer = server.http.post("/v1/chat/completions", json={**ASK, "tools": [PRICE]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
        assert "chat template has no place" in answer.json()["error"]["message"]
