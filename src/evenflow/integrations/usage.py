"""How many tokens a request and its answer have, seen from outside: by the body, the chunks and the answer's own count."""

from __future__ import annotations

import json
from typing import Any

CHARACTERS_PER_TOKEN = 4
"""A usual figure for English; a prompt that comes as token ids is counted exactly."""
DEFAULT_OUTPUT_TOKENS = 512
LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens", "max_new_tokens", "num_predict")


def prompt_tokens(content: dict[str, Any]) -> int:
    """About how many tokens the prompt has: text at ``CHARACTERS_PER_TOKEN``, token ids as they are."""
    tokens = characters = 0
    open_values = [content.get(name) for name in ("prompt", "messages", "input", "inputs", "system", "instructions")]
    while open_values:
        value = open_values.pop()
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, list):
            if value and all(type(item) is int for item in value):
                tokens += len(value)
            else:
                open_values += value
        elif isinstance(value, dict):
            open_values += [value.get(name) for name in ("content", "text")]
    return tokens + -(-characters // CHARACTERS_PER_TOKEN)


def max_output_tokens(content: dict[str, Any]) -> int:
    """The limit that the request sets, under any of its names; ``DEFAULT_OUTPUT_TOKENS`` without one."""
    places = [content, content.get("parameters"), content.get("options")]
    for place in places:
        for name in LIMITS:
            value = place.get(name) if isinstance(place, dict) else None
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return DEFAULT_OUTPUT_TOKENS


class AnswerTokens:
    """Reads an answer as it passes: one token per event of a stream that brings output, or what the answer counts itself."""

    def __init__(self) -> None:
        self._rest = b""
        self._num_events = 0
        self._num_counted = 0
        self._num_reported = 0

    def read(self, part: bytes) -> int:
        """The next bytes of the answer. Returns the tokens that they bring."""
        lines = (self._rest + part).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._read_line(line.strip())
        return self._gained()

    def finish(self) -> int:
        """The answer has ended. Returns the tokens that were not reported yet; what was reported stays so."""
        self._read_line(self._rest.strip())
        self._rest = b""
        return self._gained()

    def _gained(self) -> int:
        num_tokens = max(self._num_events, self._num_counted)
        gained, self._num_reported = num_tokens - self._num_reported, num_tokens
        return gained

    def _read_line(self, line: bytes) -> None:
        line = line.removeprefix(b"data:").strip()
        if not line.startswith(b"{"):
            return
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            return
        self._num_counted = max(self._num_counted, _counted(content))
        self._num_events += _has_output(content)


def _counted(content: dict[str, Any]) -> int:
    """Output tokens in the words of OpenAI, Anthropic, Ollama or TGI; 0 if it does not say."""
    usage, inner = content.get("usage"), content.get("response")
    if usage is None and isinstance(inner, dict):
        usage = inner.get("usage")
    details = content.get("details")
    for place, name in (
        (usage, "completion_tokens"),
        (usage, "output_tokens"),
        (content, "eval_count"),
        (details, "generated_tokens"),
    ):
        value = place.get(name) if isinstance(place, dict) else None
        if isinstance(value, int) and value >= 0:
            return value
    return 0


def _has_output(content: dict[str, Any]) -> bool:
    """Whether an event of a stream brings output, not only the frame around it."""
    choices, kind, message = content.get("choices"), content.get("type"), content.get("message")
    for choice in choices if isinstance(choices, list) else ():
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role"):
            return True
        if isinstance(choice, dict) and choice.get("text"):
            return True
    if isinstance(kind, str) and kind.endswith("delta"):
        return kind != "message_delta"
    if isinstance(message, dict) and isinstance(message.get("content"), str):
        return bool(message["content"])
    return bool(content.get("token")) or bool(isinstance(content.get("response"), str) and content["response"])
