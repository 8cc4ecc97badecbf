"""Answers that call tools: what the grammar lets a model write is what the parser reads as calls."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import pytest

from evenflow.base.errors import InvalidRequest
from evenflow.demo import assets
from evenflow.serving.grammar.compiler import GrammarCompiler
from evenflow.serving.grammar.mask_ahead import mask_of
from evenflow.serving.grammar.tool_calls import call_constraint
from evenflow.serving.text import Tokenizer
from evenflow.serving.text.reasoning import thinking_by
from evenflow.serving.text.tools.families import TOOL_PARSERS, tool_parser
from evenflow.serving.text.tools.offered import check_calls, read_tools, template_calls

PRICE: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "price",
        "description": "What something costs.",
        "parameters": {
            "type": "object",
            "properties": {"what": {"enum": ["cake", "rope"]}, "n": {"type": "integer", "minimum": 1, "maximum": 99}},
            "required": ["what", "n"],
            "additionalProperties": False,
        },
    },
}
HOURS: dict[str, Any] = {
    "type": "function",
    "function": {"name": "opening_hours", "parameters": {"type": "object", "properties": {}}},
}
SCHEMA_BY_NAME = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (PRICE, HOURS)}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(Path(assets.__file__).parent / "assets" / "base")


@pytest.fixture(scope="module")
def compiler(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.json_text(), 1024, (0,))


def walk(compiler, tokenizer, constraint, rng, most=300) -> str | None:
    matcher, tokens = compiler.compile(constraint), []
    while len(tokens) < most:
        words = mask_of(matcher)
        choices = [i for i in range(1024) if words[i // 32] >> (i % 32) & 1]
        if 0 in choices and (len(choices) == 1 or rng.random() < 0.3):
            return tokenizer.decode(tokens)
        tokens.append(rng.choice([i for i in choices if i]))
        assert matcher.consume_token(tokens[-1])
    return None


def calls_in(parser_name: str, text: str) -> tuple[str, list[list[str]]]:
    parser = tool_parser(parser_name)(tuple(SCHEMA_BY_NAME))
    content, calls = "", []
    for delta in (parser.feed(text), parser.finish()):
        content += delta.content
        for call in delta.calls:
            if call.name is not None:
                calls.append([call.name, ""])
            calls[-1][1] += call.arguments
    return content, calls


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
def test_a_required_call_is_written_so_that_its_parser_reads_it(compiler, tokenizer, name):
    offered = read_tools([PRICE, HOURS], "required")
    constraint = call_constraint(offered, TOOL_PARSERS[name].frame, lambda text: None)
    rng, num_calls = Random(3), set()
    for _ in range(12):
        text = walk(compiler, tokenizer, constraint, rng)
        if text is None:
            continue
        content, calls = calls_in(name, text)
        assert calls, text
        assert not content.strip()
        num_calls.add(len(calls))
        for called, arguments in calls:
            jsonschema.validate(json.loads(arguments), SCHEMA_BY_NAME[called])
    assert len(num_calls) > 1, "several calls and one were both seen"


def test_a_named_tool_is_the_only_one_and_once(compiler, tokenizer):
    offered = read_tools([PRICE, HOURS], {"type": "function", "function": {"name": "price"}}, is_parallel=False)
    constraint = call_constraint(offered, TOOL_PARSERS["hermes"].frame, lambda text: None)
    for seed in range(6):
        _, calls = calls_in("hermes", walk(compiler, tokenizer, constraint, Random(seed)) or "")
        assert [called for called, _ in calls] == ["price"]


def takes(compiler, tokenizer, constraint, text) -> bool:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return compiler.compile(constraint).try_consume_tokens(tokens) == len(tokens)


def test_auto_lets_text_through_and_holds_a_call_to_its_schema(compiler, tokenizer):
    constraint = call_constraint(read_tools([PRICE], "auto"), TOOL_PARSERS["hermes"].frame, lambda text: None)
    good = '<tool_call>\n{"name": "price", "arguments": {"what": "cake", "n": 3}}\n</tool_call>'
    assert takes(compiler, tokenizer, constraint, "Six shells, {or} [seven].")
    assert takes(compiler, tokenizer, constraint, "Let me see.\n" + good + "\n" + good)
    assert not takes(compiler, tokenizer, constraint, good.replace("cake", "moon"))
    assert not takes(compiler, tokenizer, constraint, "<tool_call>\nwhat?")
    assert call_constraint(read_tools([PRICE], "auto"), TOOL_PARSERS["json"].frame, lambda text: None) is None
    assert call_constraint(read_tools([PRICE], "none"), TOOL_PARSERS["hermes"].frame, lambda text: None) is None


def test_thoughts_come_before_a_required_call(compiler, tokenizer):
    offered = read_tools([HOURS], "required")
    constraint = call_constraint(offered, TOOL_PARSERS["hermes"].frame, lambda text: None, thinking_by("qwen3"))
    call = '<tool_call>\n{"name": "opening_hours", "arguments": {}}\n</tool_call>'
    assert takes(compiler, tokenizer, constraint, "<think>six {or} seven</think>\n\n" + call)
    assert takes(compiler, tokenizer, constraint, call)
    assert not takes(compiler, tokenizer, constraint, "<think>six</think> Six.")


def test_a_marker_that_is_a_special_token_is_named_by_its_number(compiler):
    special = {"[TOOL_CALLS]": 4}.get
    constraint = call_constraint(read_tools([HOURS], "required"), TOOL_PARSERS["mistral"].frame, special)
    assert constraint is not None
    assert '<[4]> "["' in (constraint.grammar or "")
    words = mask_of(compiler.compile(constraint))
    assert [i for i in range(1024) if words[i // 32] >> (i % 32) & 1] == [4]


def test_a_schema_that_cannot_be_followed(compiler):
    odd = {"name": "odd", "parameters": {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}}
    loose = read_tools([{"type": "function", "function": odd}], "required")
    assert call_constraint(loose, TOOL_PARSERS["json"].frame, lambda text: None) is not None
    strict = read_tools([{"type": "function", "function": {**odd, "strict": True}}], "required")
    with pytest.raises(InvalidRequest, match="odd"):
        call_constraint(strict, TOOL_PARSERS["json"].frame, lambda text: None)


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([{"type": "function", "function": {}}], None, "name"),
        ([{"type": "function", "function": {"name": "a b"}}], None, "'a b'"),
        ([{"type": "code"}], None, "'code'"),
        ([PRICE, PRICE], None, "one name"),
        ([PRICE], {"type": "function", "function": {"name": "nobody"}}, "'nobody'"),
        ([PRICE], "sometimes", "tool_choice"),
        ([], "required", "offers none"),
        ([{"type": "function", "function": {"name": "a", "parameters": [1]}}], None, "parameters of a"),
        ([HOURS] * 200, None, "at most 128"),
    ],
)
def test_bad_tools_are_refused_by_name(tools, choice, message):
    with pytest.raises(InvalidRequest, match="tool") as caught:
        read_tools(tools, choice)
    assert message in str(caught.value)


def test_allowed_tools_and_the_flat_form():
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "price"}]}
    offered = read_tools([{"type": "function", **PRICE["function"]}, HOURS], choice)
    assert offered is not None
    assert (offered.names, offered.mode, len(offered.tools)) == (("price",), "required", 2)
    assert read_tools([], None) is None
    assert read_tools([], "auto") is None


def test_results_answer_calls():
    call: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "price", "arguments": '{"n": 1}'}}
    history: list[dict[str, Any]] = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "6"},
    ]
    check_calls(history)
    assert template_calls([call])[0]["function"]["arguments"] == {"n": 1}
    with pytest.raises(InvalidRequest, match="'c2'"):
        check_calls([history[0], {**history[1], "tool_call_id": "c2"}])
    with pytest.raises(InvalidRequest, match="no JSON"):
        template_calls([{"function": {"name": "price", "arguments": "{"}}])
