"""What a tool parser promises, and the framing that most families share.

A parser takes an answer's text as it comes and divides it into content and calls. What only looks like a call comes
back as content: a model's mistake is never an error of the server's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from evenflow.serving.text.tools.call_scanner import CallDelta, CallScanner


@dataclass(slots=True)
class ToolDelta:
    """What one piece of text was: content, parts of calls, or both."""

    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ToolFrame:
    """How a family writes a call, for the grammar that makes it write one.

    The text of a call is ``begin``, the arguments' JSON, ``end``; ``%s`` in ``begin`` stands for the name, in JSON
    without its quotation marks. ``trigger`` is the beginning of every call; "" if calls are not announced.
    """

    trigger: str
    begin: str
    end: str
    between: str = ""
    """What stands between two calls."""
    opening: str = ""
    closing: str = ""
    """Around all calls of an answer together."""


class ToolParser(ABC):
    """Divides one answer. A new one for each answer; ``names`` are the tools that the request offers."""

    frame: ToolFrame
    keeps_special_tokens: bool = False
    """Its markers are special tokens: the text must be detokenised with them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)
        self.num_calls = 0

    @abstractmethod
    def feed(self, text: str) -> ToolDelta:
        """Take the next piece of the answer's text."""

    @abstractmethod
    def finish(self) -> ToolDelta:
        """What was held back, at the end of the answer."""


class MarkedParser(ToolParser):
    """Calls between markers, content around them: ``start`` call ``end``, any number of times.

    Subclasses set the markers. Where ``end`` is "", a call ends with its JSON, and another may follow after a comma.
    """

    start: str
    end: str = ""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._held = ""
        self._scanner: CallScanner | None = None
        self._told = False
        self._opened = ""
        """The marker and the blanks before the call that is being read: content again, if it is none."""
        self._is_closing = False

    def feed(self, text: str) -> ToolDelta:
        """See ``ToolParser``."""
        delta = ToolDelta()
        text, self._held = self._held + text, ""
        while text:
            if self._scanner is not None:
                text = self._in_call(text, delta)
            elif self._is_closing:
                text = self._after_call(text, delta)
            else:
                text = self._in_content(text, delta)
        return delta

    def finish(self) -> ToolDelta:
        """See ``ToolParser``."""
        delta = ToolDelta(self._held)
        self._held = ""
        if self._scanner is not None and not self._told:
            delta.content += self._opened + self._scanner.raw
        self._scanner = None
        return delta

    def _in_content(self, text: str, delta: ToolDelta) -> str:
        at = text.find(self.start)
        if at < 0:
            # Blanks before a call belong to its layout, not to what is said: they wait for what follows them.
            certain = text[: len(text) - overlap(text, self.start)].rstrip()
            delta.content += certain
            self._held = text[len(certain) :]
            return ""
        delta.content += text[:at].rstrip()
        self._begin(self.start)
        return text[at + len(self.start) :]

    def _begin(self, opened: str) -> None:
        self._opened, self._scanner, self._told = opened, CallScanner(self.num_calls), False

    def _in_call(self, text: str, delta: ToolDelta) -> str:
        scanner = self._scanner
        assert scanner is not None
        calls, rest = scanner.feed(text)
        if not self._told:
            if scanner.name is not None and scanner.name in self._names:
                self._told = True
                self.num_calls += 1
            elif scanner.is_broken or scanner.is_complete or scanner.name is not None:
                delta.content += self._opened + scanner.raw
                self._scanner = None
                return rest
        if self._told:
            delta.calls += calls
        if scanner.is_complete or scanner.is_broken:
            self._scanner, self._is_closing = None, True
        return rest

    def _after_call(self, text: str, delta: ToolDelta) -> str:
        stripped = text.lstrip()
        if self.end:
            if stripped.startswith(self.end):
                self._is_closing = False
                return stripped[len(self.end) :]
            if self.end.startswith(stripped):
                self._held = text
                return ""
        elif stripped[:1] in (",", ";"):
            self._is_closing = False
            self._begin("")
            return stripped[1:]
        elif stripped[:1] == "]" or not stripped:
            return stripped[1:]
        self._is_closing = False
        return text


class WholeAnswerParser(MarkedParser):
    """The answer is calls from its first character on, or it is content altogether."""

    start = ""
    lead = ""
    """A marker that may stand before the calls."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._is_content = False
        self._lead = ""

    def _in_content(self, text: str, delta: ToolDelta) -> str:
        if self._is_content or self.num_calls:
            delta.content += text if text.strip() or not self.num_calls else ""
            return ""
        self._lead += text
        stripped = self._lead.lstrip()
        if self.lead and stripped.startswith(self.lead):
            stripped = stripped[len(self.lead) :].lstrip()
        elif self.lead and self.lead.startswith(stripped):
            return ""
        if stripped.startswith("["):
            stripped = stripped[1:].lstrip()
        if not stripped:
            return ""
        opened, self._lead = self._lead[: len(self._lead) - len(stripped)], ""
        if not stripped.startswith("{"):
            self._is_content = True
            delta.content += opened + stripped
            return ""
        self._begin(opened)
        self._is_content = True  # if this is no call, all of it is content
        return stripped

    def finish(self) -> ToolDelta:
        """See ``ToolParser``."""
        delta = super().finish()
        delta.content = self._lead + delta.content
        self._lead = ""
        return delta


def overlap(text: str, marker: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``marker``, but not the whole of it."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
