"""The tools that a request offers, and which of them the answer may or must call: read strictly, as OpenAI defines them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evenflow.base.errors import InvalidRequest

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")

Mode = Literal["none", "auto", "required"]
"""Whether the answer may call a tool, must, or may not."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One function that the model may call. ``parameters`` is the JSON schema of its arguments."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    is_strict: bool

    def for_template(self) -> dict[str, Any]:
        """Return the tool as chat templates read it: OpenAI's form."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = dict(self.parameters)
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """The tools of one request. ``callable_tools`` are those that the answer may call."""

    tools: tuple[Tool, ...]
    callable_tools: tuple[Tool, ...]
    mode: Mode
    is_parallel: bool = True
    """Several calls in one answer."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tools that the answer may call."""
        return tuple(tool.name for tool in self.callable_tools)


def read_tools(tools: Sequence[Any], choice: Any, *, is_parallel: bool = True) -> OfferedTools | None:
    """Return what a request's ``tools`` and ``tool_choice`` offer; None if it offers nothing.

    ``choice`` is "none", "auto", "required", a named function, or ``{"type": "allowed_tools", ...}``. Raises
    InvalidRequest, naming the field.
    """
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"tools has {len(tools)} entries; allowed: at most {MAX_TOOLS}", "tools")
    read = tuple(_tool(tool, i) for i, tool in enumerate(tools))
    by_name = {tool.name: tool for tool in read}
    if len(by_name) != len(read):
        raise InvalidRequest("tools has two functions of one name", "tools")
    mode, names = _choice(choice, bool(read))
    if not read:
        if mode == "required":
            raise InvalidRequest("tool_choice wants a call, and tools offers none", "tool_choice")
        return None
    unknown = [name for name in names or () if name not in by_name]
    if unknown:
        raise InvalidRequest(f"tool_choice names {unknown[0]!r}; tools has {', '.join(by_name)}", "tool_choice")
    chosen = read if names is None else tuple(by_name[name] for name in names)
    return OfferedTools(read, chosen, mode, is_parallel)


def check_calls(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise InvalidRequest for a tool's result that answers no call before it, or a call that cannot be read."""
    asked: set[str] = set()
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if message.get("role") == "assistant":
            for call in message.get("tool_calls") or ():
                function = call.get("function") if isinstance(call, Mapping) else None
                if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                    raise InvalidRequest(f"{where}.tool_calls needs a function with a name", "messages")
                if isinstance(call.get("id"), str):
                    asked.add(call["id"])
        elif message.get("role") == "tool":
            call_id = message.get("tool_call_id")
            if call_id is not None and call_id not in asked:
                raise InvalidRequest(f"{where} is the result of call {call_id!r}, which no message before it made", "messages")


def template_calls(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return an assistant message's calls as chat templates read them: arguments as an object where they are one."""
    read = []
    for call in calls:
        function = dict(call["function"])
        arguments = function.get("arguments", "{}")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise InvalidRequest("the arguments of a tool call are no JSON", "messages") from None
        function["arguments"] = arguments
        read.append({**call, "type": "function", "function": function})
    return read


def _tool(tool: Any, i: int) -> Tool:
    where = f"tools[{i}]"
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        kind = tool.get("type") if isinstance(tool, Mapping) else type(tool).__name__
        raise InvalidRequest(f"{where} is of type {kind!r}; allowed: function", "tools")
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(f"{where} has the name {name!r}; allowed: 1 to 64 letters, digits and _ . : -", "tools")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequest(f"{where}: parameters of {name} is no JSON schema", "tools")
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise InvalidRequest(f"{where}: description of {name} is no text", "tools")
    return Tool(name, description, parameters or {"type": "object", "properties": {}}, function.get("strict") is True)


def _choice(choice: Any, has_tools: bool) -> tuple[Mode, list[str] | None]:
    if choice is None:
        return ("auto" if has_tools else "none"), None
    if choice in ("none", "auto", "required"):
        return choice, None
    if isinstance(choice, Mapping):
        function = choice.get("function", choice)
        if choice.get("type", "function") == "function" and isinstance(function, Mapping):
            name = function.get("name")
            if isinstance(name, str):
                return "required", [name]
        allowed = choice.get("allowed_tools", choice)
        if choice.get("type") == "allowed_tools" and isinstance(allowed, Mapping):
            names = [_tool(tool, i).name for i, tool in enumerate(allowed.get("tools") or ())]
            mode = allowed.get("mode", "auto")
            if names and mode in ("auto", "required"):
                return mode, names
    raise InvalidRequest(
        "tool_choice is none of: none, auto, required, a function by name, or allowed_tools with a mode", "tool_choice"
    )
