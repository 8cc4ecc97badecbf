"""Input items of the Responses API as messages of a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenflow.base.errors import InvalidRequest
from evenflow.serving.server.api.schema import ChatMessage, TextPart

_TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "reasoning_text")


def messages_of_items(given: str | Sequence[Mapping[str, Any]], instructions: str | None) -> list[ChatMessage]:
    """Return the conversation that ``given`` holds, ``instructions`` first. Raises InvalidRequest, naming the item."""
    messages = [] if instructions is None else [ChatMessage(role="system", content=instructions)]
    if isinstance(given, str):
        return [*messages, ChatMessage(role="user", content=given)]
    if not given:
        raise InvalidRequest("input is empty; allowed: a text, or one item or more", "input")
    for i, item in enumerate(given):
        _add(messages, item, f"input[{i}]")
    return messages


def _add(messages: list[ChatMessage], item: Mapping[str, Any], where: str) -> None:
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "message":
        role = item.get("role")
        if not isinstance(role, str):
            raise InvalidRequest(f"{where}.role is missing; it is required", "input")
        messages.append(ChatMessage(role=role, content=_content(item.get("content"), where)))
    elif kind == "function_call":
        call = {
            "id": _text(item, "call_id", where),
            "type": "function",
            "function": {"name": _text(item, "name", where), "arguments": _text(item, "arguments", where)},
        }
        last = messages[-1] if messages else None
        if last is not None and last.role == "assistant":
            last.tool_calls = [*(last.tool_calls or ()), call]
        else:
            messages.append(ChatMessage(role="assistant", content=None, tool_calls=[call]))
    elif kind == "function_call_output":
        output = item.get("output")
        content = output if isinstance(output, str) else _content(output, where)
        messages.append(ChatMessage(role="tool", content=content, tool_call_id=_text(item, "call_id", where)))
    elif kind == "reasoning":
        return  # thoughts of earlier turns are not part of what a model continues
    else:
        allowed = "message, function_call, function_call_output, reasoning"
        raise InvalidRequest(f"{where}.type is {str(kind)[:40]!r}; allowed: {allowed}", "input")


def _content(content: Any, where: str) -> str | list[TextPart]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}.content is missing; allowed: a text, or parts", "input")
    parts = []
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _TEXT_PARTS:
            raise InvalidRequest(f"{where}.content[{j}].type is {str(kind)[:40]!r}; allowed: input_text, output_text", "input")
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}.content[{j}].text is missing; it is required", "input")
        parts.append(TextPart("text", text))
    return parts


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{name} is missing; it is required", "input")
    return value
