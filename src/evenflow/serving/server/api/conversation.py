"""The turns of a chat as a template reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evenflow.base.errors import InvalidRequest
from evenflow.serving.server.api.schema import REASONING_EFFORTS, ROLES, ChatMessage
from evenflow.serving.text.tools.offered import check_calls, template_calls


def plain_message(message: ChatMessage, where: str, knows_role: Callable[[str], bool]) -> dict[str, Any]:
    """Return one turn as templates read it. ``knows_role``: of the template, for roles beyond ROLES. Raises InvalidRequest."""
    if message.role not in ROLES and not knows_role(message.role):
        raise InvalidRequest(
            f"{where}.role is {message.role[:40]!r}; allowed: {', '.join(ROLES)}, and others that the model's chat template "
            "knows",
            f"{where}.role",
        )
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest(f"{where}.tool_calls is given; allowed on messages of the assistant", f"{where}.tool_calls")
    content: Any = message.content
    if isinstance(content, list):
        for number, part in enumerate(content):
            place = f"{where}.content[{number}]"
            if part.type != "text":
                raise InvalidRequest(f"{place}.type is {part.type[:40]!r}; allowed: text", f"{place}.type")
            if part.text is None:
                raise InvalidRequest(f"{place}.text is missing; it is required", f"{place}.text")
        content = [{"type": "text", "text": part.text or ""} for part in content]
    if content is None:
        if message.role != "assistant":
            raise InvalidRequest(f"{where}.content is missing; it is required", f"{where}.content")
        content = ""
    role = "system" if message.role == "developer" and not knows_role("developer") else message.role
    plain: dict[str, Any] = {"role": role, "content": content}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_calls:
        check_calls([{"role": "assistant", "tool_calls": message.tool_calls}])
        plain["tool_calls"] = template_calls(message.tool_calls)
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.reasoning_content is not None and message.role == "assistant":
        plain["reasoning_content"] = message.reasoning_content
    return plain


def effort_variables(effort: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a chat template that knows them is told of ``effort``, as vLLM tells it. Raises InvalidRequest.

    ``given``: the caller's own variables; ``enable_thinking`` among them stays as it is.
    """
    if effort is None:
        return {}
    if effort not in REASONING_EFFORTS:
        raise InvalidRequest(
            f"reasoning_effort is {effort[:40]!r}; allowed: {', '.join(REASONING_EFFORTS)}", "reasoning_effort"
        )
    variables: dict[str, Any] = {"reasoning_effort": effort}
    if "enable_thinking" not in given:
        variables["enable_thinking"] = effort != "none"
    return variables


def text_of_message(message: ChatMessage) -> str:
    """Return the text of one turn."""
    content = message.content
    return content if isinstance(content, str) else "\n".join(part.text or "" for part in content or ())


def num_characters(content: str | list[dict[str, str]]) -> int:
    """Characters of one message's content."""
    return len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)
