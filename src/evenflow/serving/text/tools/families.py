"""The families' ways to write tool calls, by name, and which one a chat template teaches.

Names are those of vLLM's ``--tool-call-parser``.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence

from evenflow.base.errors import RegistryError
from evenflow.serving.text.tools.call_scanner import CallDelta, CallScanner
from evenflow.serving.text.tools.tool_parser import MarkedParser, ToolDelta, ToolFrame, ToolParser, WholeAnswerParser


class HermesParser(MarkedParser):
    """``<tool_call>{"name": ..., "arguments": ...}</tool_call>``: Hermes, Qwen 2.5 and 3, SmolLM 3."""

    start, end = "<tool_call>", "</tool_call>"
    frame = ToolFrame("<tool_call>", '<tool_call>\n{"name": "%s", "arguments": ', "}\n</tool_call>", between="\n")
    keeps_special_tokens = True


class MistralParser(MarkedParser):
    """``[TOOL_CALLS][{"name": ..., "arguments": ...}, ...]``, and the later ``[TOOL_CALLS]name{...}``."""

    start = "[TOOL_CALLS]"
    frame = ToolFrame("[TOOL_CALLS]", '{"name": "%s", "arguments": ', "}", ", ", "[TOOL_CALLS][", "]")
    keeps_special_tokens = True

    def _begin(self, opened: str) -> None:
        super()._begin(opened)
        self._lead = ""
        self._is_leading = True

    def _in_call(self, text: str, delta: ToolDelta) -> str:
        if self._is_leading:
            self._lead += text
            stripped = self._lead.lstrip("[ \n")
            brace = stripped.find("{")
            if brace < 0:
                return ""
            self._is_leading = False
            name = stripped[:brace].removesuffix("[ARGS]").strip()
            self._opened += self._lead[: len(self._lead) - len(stripped)]
            text = stripped if not name else f'{{"name": {json.dumps(name)}, "arguments": {stripped[brace:]}'
            self._is_short = bool(name)
        if self._is_short:
            return self._in_short_call(text, delta)
        return super()._in_call(text, delta)

    def _in_short_call(self, text: str, delta: ToolDelta) -> str:
        """The arguments alone are written: the call's own closing brace is added behind them."""
        scanner = self._scanner
        assert scanner is not None
        for i, char in enumerate(text):
            super()._in_call(char, delta)
            if self._scanner is None:
                return text[i + 1 :]
            if char == "}" and scanner.is_back_at_top:
                super()._in_call("}", delta)
                return text[i + 1 :]
        return ""

    def finish(self) -> ToolDelta:
        """See ``ToolParser``."""
        if self._scanner is not None and self._is_leading:
            self._opened += self._lead
        return super().finish()

    _is_short = False
    _is_leading = False


class LlamaJsonParser(WholeAnswerParser):
    """``{"name": ..., "parameters": ...}``, several with ``;`` between them: Llama 3.1 to 3.3."""

    lead = "<|python_tag|>"
    frame = ToolFrame("", '{"name": "%s", "parameters": ', "}", "; ")
    keeps_special_tokens = True


class JsonParser(WholeAnswerParser):
    """``{"name": ..., "arguments": ...}`` or a list of them: for any other model."""

    frame = ToolFrame("", '{"name": "%s", "arguments": ', "}", ", ", "[", "]")


class PythonicParser(ToolParser):
    """``[name(argument=value, ...), ...]``: Llama 3.2 and 4, and others that were taught to write Python.

    A call is told when it is whole: its arguments are Python literals, which become JSON.
    """

    frame = ToolFrame("", '{"name": "%s", "arguments": ', "}", ", ", "[", "]")

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._text = ""
        self._is_content = False

    def feed(self, text: str) -> ToolDelta:
        """See ``ToolParser``."""
        if self._is_content:
            return ToolDelta(text)
        self._text += text
        if self._text.strip() and not self._text.lstrip().removeprefix("<|python_start|>").lstrip().startswith("["):
            if "<|python_start|>".startswith(self._text.strip()):
                return ToolDelta()
            self._is_content = True
            text, self._text = self._text, ""
            return ToolDelta(text)
        return ToolDelta()

    def finish(self) -> ToolDelta:
        """See ``ToolParser``."""
        text, self._text = self._text, ""
        calls = self._calls(text.strip().removeprefix("<|python_start|>").removesuffix("<|python_end|>").strip())
        if calls is None:
            # Constrained answers are written as JSON, also for these models.
            as_json = JsonParser(tuple(self._names))
            delta, rest = as_json.feed(text), as_json.finish()
            self.num_calls = as_json.num_calls
            return ToolDelta(delta.content + rest.content, delta.calls + rest.calls)
        self.num_calls = len(calls)
        return ToolDelta("", calls)

    def _calls(self, text: str) -> list[CallDelta] | None:
        try:
            tree = ast.parse(text, mode="eval").body
            if not isinstance(tree, ast.List) or not tree.elts:
                return None
            calls = []
            for i, call in enumerate(tree.elts):
                if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name | ast.Attribute) or call.args:
                    return None
                name = ast.unparse(call.func)
                if name not in self._names:
                    return None
                arguments = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
                calls.append(CallDelta(i, name, json.dumps(arguments, ensure_ascii=False)))
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            return None
        return calls


TOOL_PARSERS: Mapping[str, type[ToolParser]] = {
    "hermes": HermesParser,
    "json": JsonParser,
    "llama3_json": LlamaJsonParser,
    "llama4_pythonic": PythonicParser,
    "mistral": MistralParser,
    "pythonic": PythonicParser,
    "qwen": HermesParser,
}


def tool_parser(name: str) -> type[ToolParser]:
    """Return the parser called ``name``. Raises RegistryError, listing the known ones."""
    found = TOOL_PARSERS.get(name)
    if found is None:
        raise RegistryError(f"unknown tool-call parser {name!r}; known: {', '.join(TOOL_PARSERS)}")
    return found


def parser_of_template(template: str) -> str | None:
    """Return the name of the parser for what a chat template teaches; None if it has no place for tools."""
    if "tools" not in template:
        return None
    for marker, name in (
        ("<tool_call>", "hermes"),
        ("[TOOL_CALLS]", "mistral"),
        ("func_name1", "pythonic"),
        ("<|python_start|>", "pythonic"),
        ("<|python_tag|>", "llama3_json"),
        ('"parameters": dictionary', "llama3_json"),
    ):
        if marker in template:
            return name
    return "json"


__all__ = ["TOOL_PARSERS", "CallScanner", "parser_of_template", "tool_parser"]
