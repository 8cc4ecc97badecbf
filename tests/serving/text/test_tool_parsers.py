"""Tool calls read from text: the same however the text is cut, and text again where it is no call."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.base.errors import RegistryError
from evenflow.serving.text.reasoning import ReasoningSplitter, thinking_by
from evenflow.serving.text.tools.families import TOOL_PARSERS, parser_of_template, tool_parser

NAMES = ("price", "opening_hours", "where.at")
CALLS = {
    "hermes": 'Let me see.\n<tool_call>\n{"name": "price", "arguments": {"what": "honey \\"cake\\" }", "n": 3}}\n</tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "price", "arguments": {"what": "honey \\"cake\\" }", "n": 3}}]',
    "llama3_json": '<|python_tag|>{"name": "price", "parameters": {"what": "honey \\"cake\\" }", "n": 3}}',
    "json": '[{"arguments": {"what": "honey \\"cake\\" }", "n": 3}, "name": "price"}]',
    "pythonic": "[price(what='honey \"cake\" }', n=3)]",
}
WANTED = {"what": 'honey "cake" }', "n": 3}


def read(name: str, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    parser = tool_parser(name)(NAMES)
    content, calls = "", {}
    deltas = [parser.feed(piece) for piece in pieces] + [parser.finish()]
    for delta in deltas:
        content += delta.content
        for call in delta.calls:
            if call.name is not None:
                assert call.index not in calls, "a name is told once"
                calls[call.index] = [call.name, ""]
            calls[call.index][1] += call.arguments
    assert sorted(calls) == list(range(parser.num_calls))
    return content, [(name, arguments) for name, arguments in calls.values()]


def cut(text: str, seed: int) -> list[str]:
    rng, pieces = Random(seed), []
    while text:
        size = rng.randint(1, 7)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("seed", range(8))
def test_a_call_is_read_however_it_is_cut(name, seed):
    content, calls = read(name, cut(CALLS[name], seed))
    assert [called for called, _ in calls] == ["price"]
    assert json.loads(calls[0][1]) == WANTED
    assert content == ("Let me see." if name == "hermes" else "")


TWO = {
    "hermes": '<tool_call>{"name": "price", "arguments": {}}</tool_call>\n'
    '<tool_call>{"name": "where.at", "arguments": {"x": [1]}}</tool_call>',
    "mistral": '[TOOL_CALLS] [{"name": "price", "arguments": {}}, {"name": "where.at", "arguments": {"x": [1]}}]',
    "llama3_json": '{"name": "price", "parameters": {}}; {"name": "where.at", "parameters": {"x": [1]}}',
    "json": '[{"name": "price", "arguments": {}}, {"name": "where.at", "arguments": {"x": [1]}}]',
    "pythonic": "[price(), where.at(x=[1])]",
}  # fmt: skip


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("seed", range(8))
def test_parallel_calls(name, seed):
    content, calls = read(name, cut(TWO[name], seed))
    assert [(called, json.loads(arguments)) for called, arguments in calls] == [("price", {}), ("where.at", {"x": [1]})]
    assert not content.strip()


@pytest.mark.parametrize("seed", range(6))
def test_mistrals_short_form(seed):
    content, calls = read("mistral", cut('[TOOL_CALLS]price{"what": {"a": "}"}, "n": 3}', seed))
    assert [(called, json.loads(arguments)) for called, arguments in calls] == [("price", {"what": {"a": "}"}, "n": 3})]
    assert content == ""


@pytest.mark.parametrize("name", [name for name in CALLS if name != "pythonic"])
def test_arguments_come_as_they_are_written_behind_the_name(name):
    if name == "json":
        pytest.skip("its arguments stand before its name here")
    parser = tool_parser(name)(NAMES)
    text = CALLS[name]
    half = text.index("honey") + 3
    first = parser.feed(text[:half])
    assert first.calls[0].name == "price"
    assert first.calls[0].arguments == '{"what": "hon'
    second = parser.feed(text[half:])
    assert all(call.name is None for call in second.calls)


@pytest.mark.parametrize("name", TOOL_PARSERS)
@pytest.mark.parametrize(
    "text",
    [
        "Six shells.",
        "a < b, and [1, 2] is a list; {curly}",
        "{not json}",
        '{"name": "nobody", "arguments": {}}',
        '<tool_call>{"name": "nobody", "arguments": {}}',
        "<tool_call> what?",
        "<tool_c",
        "[TOOL_CALLS] never mind",
        "[nobody(x=1)]",
        "[price(1)]",
        "[price(x=open('f'))]",
        "",
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_no_call_comes_back_as_content(name, text, seed):
    content, calls = read(name, cut(text, seed))
    assert calls == []
    assert "".join(content.split()) == "".join(text.split())


def test_arguments_inside_a_string_are_unpacked():
    _, calls = read("json", ['{"name": "price", "arguments": "{\\"n\\": 1}"}'])
    assert calls == [("price", '{"n": 1}')]


def test_a_call_cut_short_keeps_what_was_told():
    _, calls = read("hermes", ['<tool_call>{"name": "price", "arguments": {"n": 1'])
    assert calls == [("price", '{"n": 1')]


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(TOOL_PARSERS)),
    text=st.text(alphabet='<tool_ca>/{}[]"\\:, nameprice()=;\n', max_size=80),
    seed=st.integers(0, 3),
)
def test_any_text_is_read_without_an_error_and_nothing_is_invented(name, text, seed):
    content, calls = read(name, cut(text, seed))
    assert all(called in NAMES for called, _ in calls)
    if not calls:
        assert "".join(content.split()) == "".join(text.split())


def test_the_parser_follows_from_the_template():
    assert parser_of_template("{{ messages }}") is None
    assert parser_of_template("{% if tools %}<tool_call>{% endif %}") == "hermes"
    assert parser_of_template("{% if tools %}[TOOL_CALLS]") == "mistral"
    assert parser_of_template("{% if tools %}<|python_tag|>") == "llama3_json"
    assert parser_of_template("{% if tools %}{{ tools | tojson }}") == "json"
    with pytest.raises(RegistryError, match="hermes"):
        tool_parser("nobody")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("name", "text", "thoughts", "answer"),
    [
        ("qwen3", "<think>\nsix</think>\n\nSix.", "\nsix", "Six."),
        ("qwen3", "Six.", "", "Six."),
        ("qwen3", "<thing> is", "", "<thing> is"),
        ("deepseek_r1", "six</think>Six.", "six", "Six."),
        ("deepseek_r1", "<think>six</think>Six.", "six", "Six."),
        ("deepseek_r1", "never ends </thi", "never ends </thi", ""),
        ("mistral", "[THINK]a[/THINK]b", "a", "b"),
    ],
)
def test_thoughts_are_divided_from_the_answer(name, text, thoughts, answer, seed):
    splitter = ReasoningSplitter(thinking_by(name))
    pieces = [splitter.feed(piece) for piece in cut(text, seed)] + [splitter.finish()]
    assert ("".join(t for t, _ in pieces), "".join(a for _, a in pieces).lstrip("\n")) == (thoughts, answer)
