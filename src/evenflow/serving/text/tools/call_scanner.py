"""One tool call as JSON, read character by character: its name as soon as it is there, its arguments as they come."""

from __future__ import annotations

import json
from dataclasses import dataclass

NAME_KEYS = ("name", "function", "tool_name")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")


@dataclass(slots=True)
class CallDelta:
    """What one piece of text added to one call. ``name`` is set once, before or with the first of the arguments."""

    index: int
    name: str | None = None
    arguments: str = ""
    """The next characters of the arguments' JSON text."""


class CallScanner:
    """Reads the JSON object ``{"name": ..., "arguments": {...}}``, keys in either order. Mutated by ``feed`` alone."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._is_key = True
        self._key: str | None = None
        self._value = ""
        """Text of the key or value at depth 1 that is being read."""
        self._early_arguments = ""
        """Arguments that came before the name."""
        self._is_quoted = False
        """The arguments are a JSON text inside a JSON string."""
        self._streams = False
        self.raw = ""
        self.name: str | None = None
        self.has_arguments = False
        self.is_complete = False
        self.is_broken = False

    @property
    def is_back_at_top(self) -> bool:
        """True between two members of the call's own object: what was opened inside is closed again."""
        return self._depth == 1 and not self._in_string

    def feed(self, text: str) -> tuple[list[CallDelta], str]:
        """Take text; return what it added, and what follows the object's end. Stops at once where it is no call."""
        deltas: list[CallDelta] = []
        for i, char in enumerate(text):
            self.raw += char
            piece = self._take(char)
            if piece is not None:
                self._merge(deltas, piece)
            if self.is_complete or self.is_broken:
                return deltas, text[i + 1 :]
        return deltas, ""

    def _take(self, char: str) -> CallDelta | None:
        if self._in_string:
            return self._inside_string(char)
        if self._depth == 0:
            if char == "{":
                self._depth = 1
            elif not char.isspace():
                self.is_broken = True
            return None
        if char == '"':
            self._in_string = True
            return self._extend(char)
        if char in "{[":
            self._depth += 1
            return self._extend(char)
        if char in "}]" and self._depth > 1:
            self._depth -= 1
            return self._extend(char)
        if self._depth == 1 and char in ":,}]":
            return self._structural(char)
        return self._extend(char)

    def _inside_string(self, char: str) -> CallDelta | None:
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._in_string = False
        return self._extend(char)

    def _structural(self, char: str) -> CallDelta | None:
        if char == ":" and self._is_key:
            self._key, self._value, self._is_key = _loaded(self._value), "", False
            return None
        if char in ",}":
            ended = self._end_value()
            self._key, self._value, self._is_key = None, "", True
            if char == "}":
                self._depth = 0
                self.is_complete = self.name is not None
                self.is_broken = self.name is None
                if self.is_complete and not self.has_arguments:
                    return CallDelta(self._index, None if ended is None else ended.name, "{}")
            return ended
        self.is_broken = True
        return None

    def _extend(self, char: str) -> CallDelta | None:
        self._value += char
        if self._is_key or self._key not in ARGUMENT_KEYS:
            return None
        if self._streams:
            return CallDelta(self._index, None, char)
        if self._value.isspace():
            self._value = ""
        elif self._value == '"':
            self._is_quoted = True
        elif not self._is_quoted and self.name is not None:
            self._streams, self.has_arguments = True, True
            return CallDelta(self._index, None, self._value)
        return None

    def _end_value(self) -> CallDelta | None:
        if self._key in NAME_KEYS and self.name is None:
            name = _loaded(self._value)
            if not name:
                self.is_broken = True
                return None
            self.name = name
            early, self._early_arguments = self._early_arguments, ""
            self.has_arguments = self.has_arguments or bool(early)
            return CallDelta(self._index, name, early)
        if self._key in ARGUMENT_KEYS and not self._streams:
            text = (_loaded(self._value) or "{}") if self._is_quoted else self._value.strip()
            self._is_quoted = False
            if self.name is None:
                self._early_arguments = text
                return None
            self.has_arguments = True
            return CallDelta(self._index, None, text)
        self._streams = False
        return None

    @staticmethod
    def _merge(deltas: list[CallDelta], piece: CallDelta) -> None:
        if deltas and piece.name is None:
            deltas[-1].arguments += piece.arguments
        else:
            deltas.append(piece)


def _loaded(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
