"""Anthropic's messages, tools and choices as those of a chat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from evenflow.base.errors import InvalidRequest
from evenflow.serving.server.api.messages_schema import MessagesRequest
from evenflow.serving.server.api.responses_schema import response_format_of
from evenflow.serving.server.api.schema import ChatMessage
from evenflow.serving.server.api.structured_fields import ResponseFormat


def chat_messages(body: MessagesRequest) -> list[ChatMessage]:
    """Return the conversation, the system's text first. Raises InvalidRequest, naming the block."""
    messages: list[ChatMessage] = []
    if body.system is not None:
        system = body.system if isinstance(body.system, str) else _text_of(body.system, "system")
        messages.append(ChatMessage(role="system", content=system))
    for i, message in enumerate(body.messages):
        where, role, content = f"messages[{i}]", message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise InvalidRequest(f"{where}.role is {str(role)[:40]!r}; allowed: user, assistant, system", "messages")
        if isinstance(content, str):
            messages.append(ChatMessage(role=role, content=content))
        elif isinstance(content, list):
            messages += _of_blocks(role, content, where)
        else:
            raise InvalidRequest(f"{where}.content is missing; allowed: a text, or blocks", "messages")
    return messages


def is_prefilled(messages: Sequence[ChatMessage]) -> bool:
    """True if the last message is the beginning of the answer: a text of the assistant's, which the model continues."""
    last = messages[-1] if messages else None
    return last is not None and last.role == "assistant" and bool(last.content) and not last.tool_calls


def effort_of(body: MessagesRequest) -> str | None:
    """Return how much the model shall think, in a chat's words; None: as its template has it."""
    if body.thinking is not None and body.thinking.get("type") == "disabled":
        return "none"
    return None if body.output_config is None else body.output_config.effort


def format_of(body: MessagesRequest) -> ResponseFormat | None:
    """Return what the answer must look like. Raises InvalidRequest."""
    try:
        return response_format_of(body.output_config.format if body.output_config is not None else None)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"output_config.format: {error}", "output_config.format") from None


def chat_tools(body: MessagesRequest) -> tuple[list[dict[str, Any]] | None, Any, bool | None]:
    """Return (tools, tool_choice, parallel_tool_calls) as a chat has them. Raises InvalidRequest."""
    tools = None
    if body.tools:
        tools = [{"type": "function", "function": _function(tool, f"tools[{i}]")} for i, tool in enumerate(body.tools)]
    choice = body.tool_choice
    if choice is None:
        return tools, None, None
    kind = choice.get("type")
    parallel = None if choice.get("disable_parallel_tool_use") is not True else False
    if kind == "tool":
        return tools, {"type": "function", "function": {"name": choice.get("name")}}, parallel
    by_kind = {"auto": "auto", "any": "required", "none": "none"}
    if kind not in by_kind:
        raise InvalidRequest(f"tool_choice.type is {str(kind)[:40]!r}; allowed: auto, any, tool, none", "tool_choice")
    return tools, by_kind[kind], parallel


def _function(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type", "custom") != "custom":
        raise InvalidRequest(f"{where}.type is {str(tool.get('type'))[:40]!r}; allowed: custom", "tools")
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema"), "strict": tool.get("strict") is True}
    if "description" in tool:
        function["description"] = tool["description"]
    return function


def _of_blocks(role: str, blocks: Sequence[Any], where: str) -> list[ChatMessage]:
    results: list[ChatMessage] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for j, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, Mapping) else None
        place = f"{where}.content[{j}]"
        if kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind == "tool_use" and role == "assistant":
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            function = {"name": block.get("name"), "arguments": arguments}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result" and role == "user":
            content = block.get("content", "")
            text = content if isinstance(content, str) else _text_of(content, place)
            call_id = block.get("tool_use_id")
            if not isinstance(call_id, str):
                raise InvalidRequest(f"{place}.tool_use_id is missing; it is required", "messages")
            results.append(ChatMessage(role="tool", content=text, tool_call_id=call_id))
        elif kind in ("thinking", "redacted_thinking") and role == "assistant":
            continue  # thoughts of earlier turns are not part of what a model continues
        else:
            raise InvalidRequest(
                f"{place}.type is {str(kind)[:40]!r}; allowed: text, tool_result from users, tool_use and thinking from the "
                "assistant",
                "messages",
            )
    if texts or calls or not results:
        text = "\n".join(texts)
        results.append(ChatMessage(role=role, content=text if texts or not calls else None, tool_calls=calls or None))
    return results


def _text_of(blocks: Any, where: str) -> str:
    if not isinstance(blocks, list) or not all(isinstance(b, Mapping) and isinstance(b.get("text"), str) for b in blocks):
        raise InvalidRequest(f"{where} holds more than text; allowed: a text, or blocks of type text", where.split("[")[0])
    return "\n".join(block["text"] for block in blocks)
