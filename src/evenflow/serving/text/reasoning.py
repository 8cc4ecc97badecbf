"""What a model thinks aloud before it answers, divided from the answer. No torch.

Names are those of vLLM's ``--reasoning-parser``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evenflow.base.errors import RegistryError
from evenflow.serving.text.tools.tool_parser import overlap


@dataclass(frozen=True, slots=True)
class Thinking:
    """The marks around a model's thoughts. ``is_open``: an answer begins inside them, the first mark is in the prompt."""

    start: str
    end: str
    is_open: bool = False


REASONING_PARSERS: Mapping[str, Thinking] = {
    "deepseek_r1": Thinking("<think>", "</think>", is_open=True),
    "granite": Thinking("Here is my thought process:", "Here is my response:"),
    "mistral": Thinking("[THINK]", "[/THINK]"),
    "qwen3": Thinking("<think>", "</think>"),
    "smollm3": Thinking("<think>", "</think>"),
}


def thinking_by(name: str) -> Thinking:
    """Return the marks called ``name``. Raises RegistryError, listing the known ones."""
    if name not in REASONING_PARSERS:
        raise RegistryError(f"unknown reasoning parser {name!r}; known: {', '.join(REASONING_PARSERS)}")
    return REASONING_PARSERS[name]


class ReasoningSplitter:
    """Divides one answer's text, as it comes, into thoughts and answer."""

    def __init__(self, thinking: Thinking) -> None:
        self._thinking = thinking
        self._is_inside: bool | None = None
        """None: nothing but blanks has come yet, or what may become the first mark."""
        self._held = ""
        self._is_behind_mark = False
        """Only blank lines have come since the thoughts ended."""

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece; return (thoughts, answer) of it."""
        text, self._held = self._held + text, ""
        if self._is_inside is None:
            stripped = text.lstrip()
            if stripped.startswith(self._thinking.start):
                self._is_inside = True
                text = stripped[len(self._thinking.start) :]
            elif not stripped or self._thinking.start.startswith(stripped):
                self._held = text
                return "", ""
            else:
                self._is_inside = self._thinking.is_open
        if not self._is_inside:
            return "", self._said(text)
        at = text.find(self._thinking.end)
        if at < 0:
            held = overlap(text, self._thinking.end)
            self._held = text[len(text) - held :]
            return text[: len(text) - held], ""
        self._is_inside = False
        self._is_behind_mark = True
        return text[:at], self._said(text[at + len(self._thinking.end) :])

    def _said(self, text: str) -> str:
        """The answer without the blank lines that part it from the thoughts."""
        if self._is_behind_mark:
            text = text.lstrip("\n")
            self._is_behind_mark = not text
        return text

    def finish(self) -> tuple[str, str]:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        is_thought = self._thinking.is_open if self._is_inside is None else self._is_inside
        return (held, "") if is_thought else ("", held)
