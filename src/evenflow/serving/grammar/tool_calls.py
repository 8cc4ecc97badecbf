"""The grammar of an answer that calls tools, in its model's own way of writing calls.

Where a call is required the whole answer is calls. Where it is allowed, text is free until a call begins. A tool
whose schema cannot be made a grammar is held to "any object", unless it is strict: then the request is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from evenflow.base.errors import InvalidRequest
from evenflow.serving.core.structured import MAX_TEXT, StructuredOutputs
from evenflow.serving.grammar.json_schema import read_schema
from evenflow.serving.grammar.structural_tags import json_content
from evenflow.serving.text.reasoning import Thinking
from evenflow.serving.text.tools.offered import OfferedTools, Tool
from evenflow.serving.text.tools.tool_parser import ToolFrame

SpecialToken = Callable[[str], int | None]
"""Id of a marker that is one special token of the tokenizer; None for ordinary text."""


def call_constraint(
    offered: OfferedTools, frame: ToolFrame, special: SpecialToken, thinking: Thinking | None = None
) -> StructuredOutputs | None:
    """Return the constraint of an answer that may or must call the offered tools; None if nothing need be held to it.

    Raises InvalidRequest for a strict tool whose schema cannot be followed.
    """
    is_announced = bool(frame.trigger)
    if offered.mode == "none" or (offered.mode == "auto" and not is_announced):
        return None
    lines = ["%llguidance {}"]
    calls = [_call(tool, frame, special) for tool in offered.callable_tools]
    lines += [f"call_{i}: {body}" for i, body in enumerate(calls)]
    lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(calls))))
    between, opening, closing = (_marker(part, special) for part in (frame.between, frame.opening, frame.closing))
    more = f" ({between} call)*" if offered.is_parallel else ""
    body = f"{opening} call{more} {closing}"
    if offered.mode == "auto":
        trigger = special(frame.trigger)
        if trigger is None:
            lines.append(f"before[lazy]: TEXT {_quoted(frame.trigger)}")
            lines += [f"auto_{i}: before {_behind_trigger(tool, frame)}" for i, tool in enumerate(offered.callable_tools)]
            one = " | ".join(f"auto_{i}" for i in range(len(calls)))
            body = f"({one}){'*' if offered.is_parallel else '?'} TEXT"
        else:
            body = f"TEXT | TEXT {body}"
        lines.append(r"TEXT: /(.|\n)*/")
    start = body if thinking is None else f"thought? ({body})"
    if thinking is not None:
        begin = "" if thinking.is_open else _marker(thinking.start, special)
        end = special(thinking.end)
        if end is None:
            lines.append(f"thought_end[lazy]: /(.|\\n)*/ {_quoted(thinking.end)}")
            lines.append(f"thought: {begin} thought_end /\\n*/")
        else:
            lines.append(f"thought: {begin} /(.|\\n)*/ <[{end}]> /\\n*/")
    text = "\n".join([lines[0], f"start: {start}", *lines[1:]]) + "\n"
    if len(text) > MAX_TEXT:
        raise InvalidRequest(f"the tools' schemas have {len(text)} characters together; allowed: {MAX_TEXT}", "tools")
    return StructuredOutputs(grammar=text)


def _call(tool: Tool, frame: ToolFrame, special: SpecialToken) -> str:
    begin = frame.begin % tool.name
    parts = []
    if frame.trigger and begin.startswith(frame.trigger):
        parts.append(_marker(frame.trigger, special))
        begin = begin.removeprefix(frame.trigger)
    parts += [_marker(begin, special), json_content(_schema(tool)), _marker(frame.end, special)]
    return " ".join(part for part in parts if part)


def _behind_trigger(tool: Tool, frame: ToolFrame) -> str:
    begin = (frame.begin % tool.name).removeprefix(frame.trigger)
    return " ".join(part for part in (_quoted(begin), json_content(_schema(tool)), _quoted(frame.end)) if part)


def _schema(tool: Tool) -> Mapping[str, Any]:
    from llguidance import LLMatcher

    try:
        schema = read_schema(json.dumps(tool.parameters), "tools")
        said = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(schema)))
        if said and not said.startswith("WARNING"):
            raise InvalidRequest(f"the parameters of {tool.name} cannot be followed: {said.splitlines()[0][:200]}", "tools")
    except InvalidRequest:
        if tool.is_strict:
            raise
        return {"type": "object"}
    return schema


def _marker(text: str, special: SpecialToken) -> str:
    """Return Lark for ``text``; the special token in it, if one stands at its beginning or is all of it, by number."""
    if not text:
        return ""
    token = special(text)
    if token is not None:
        return f"<[{token}]>"
    for cut in range(len(text) - 1, 1, -1):
        token = special(text[:cut]) if text[cut - 1] in "]>" else None
        if token is not None:
            return f"<[{token}]> {_quoted(text[cut:])}"
    return _quoted(text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
