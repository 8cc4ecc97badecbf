"""Thoughts, words and calls of one answer, in any cut."""

from __future__ import annotations

import pytest

from evenflow.serving.text.answer_reader import AnswerReader, ReadAnswer, read_whole
from evenflow.serving.text.reasoning import thinking_by
from evenflow.serving.text.tools.families import HermesParser

TEXT = '<think>cake?</think>\n\nLet me see.\n<tool_call>{"name": "price", "arguments": {"n": 3}}</tool_call>'


@pytest.mark.parametrize("size", [1, 2, 5, 11, 200])
def test_everything_in_its_place(size):
    reader, answer = AnswerReader(thinking_by("qwen3"), HermesParser(["price"])), ReadAnswer()
    for i in range(0, len(TEXT), size):
        answer.add(reader.feed(TEXT[i : i + size]))
    answer.add(reader.finish())
    assert (answer.reasoning, answer.content.strip()) == ("cake?", "Let me see.")
    assert [(call.name, call.arguments) for call in answer.calls] == [("price", '{"n": 3}')]
    assert reader.num_calls == 1


def test_plain_text_is_passed_on_at_once():
    reader = AnswerReader()
    assert reader.feed("<think> {").content == "<think> {"
    assert reader.finish().is_empty


def test_read_at_once():
    assert read_whole(AnswerReader(thinking_by("deepseek_r1")), "hm</think>Six.") == ReadAnswer("hm", "Six.")
