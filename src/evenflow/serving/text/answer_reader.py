"""An answer's text, as it comes, divided into what was thought, what is said and which tools are called. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from evenflow.serving.text.reasoning import ReasoningSplitter, Thinking
from evenflow.serving.text.tools.call_scanner import CallDelta
from evenflow.serving.text.tools.tool_parser import ToolParser


@dataclass(slots=True)
class AnswerDelta:
    """What one piece of text was."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def add(self, other: AnswerDelta) -> None:
        """Append what came next."""
        self.reasoning += other.reasoning
        self.content += other.content
        self.calls += other.calls

    @property
    def is_empty(self) -> bool:
        """True if nothing can be told yet."""
        return not (self.reasoning or self.content or self.calls)


@dataclass(slots=True)
class ReadCall:
    """One whole call."""

    name: str
    arguments: str = ""


@dataclass(slots=True)
class ReadAnswer:
    """One whole answer."""

    reasoning: str = ""
    content: str = ""
    calls: list[ReadCall] = field(default_factory=list)

    def add(self, delta: AnswerDelta) -> None:
        """Append what came."""
        self.reasoning += delta.reasoning
        self.content += delta.content
        for call in delta.calls:
            if call.name is not None:
                self.calls.append(ReadCall(call.name))
            self.calls[call.index].arguments += call.arguments


class AnswerReader:
    """Reads one answer. ``thinking`` and ``parser`` None: all of it is content."""

    def __init__(self, thinking: Thinking | None = None, parser: ToolParser | None = None) -> None:
        self._splitter = None if thinking is None else ReasoningSplitter(thinking)
        self._parser = parser

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return 0 if self._parser is None else self._parser.num_calls

    def feed(self, text: str) -> AnswerDelta:
        """Take the next piece of text."""
        reasoning, said = ("", text) if self._splitter is None else self._splitter.feed(text)
        return self._read(reasoning, said)

    def finish(self) -> AnswerDelta:
        """What was held back, at the end of the answer."""
        reasoning, said = ("", "") if self._splitter is None else self._splitter.finish()
        delta = self._read(reasoning, said)
        if self._parser is not None:
            rest = self._parser.finish()
            delta.content += rest.content
            delta.calls += rest.calls
        return delta

    def _read(self, reasoning: str, said: str) -> AnswerDelta:
        if self._parser is None or not said:
            return AnswerDelta(reasoning, said)
        divided = self._parser.feed(said)
        return AnswerDelta(reasoning, divided.content, divided.calls)


MakeReader = Callable[[], AnswerReader]
"""A new reader for each completion."""


def read_whole(reader: AnswerReader, text: str) -> ReadAnswer:
    """Return a whole answer, read at once."""
    answer = ReadAnswer()
    answer.add(reader.feed(text))
    answer.add(reader.finish())
    return answer
