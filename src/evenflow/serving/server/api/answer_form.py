"""What form an answer has: thoughts, text and tool calls, in the model's own way, and the constraint that holds it to that."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.base.errors import InvalidRequest
from evenflow.serving.core.structured import StructuredOutputs
from evenflow.serving.grammar.tool_calls import call_constraint
from evenflow.serving.server.interfaces import ChatTemplate, Tokenizer
from evenflow.serving.text.answer_reader import AnswerReader
from evenflow.serving.text.reasoning import Thinking, thinking_by
from evenflow.serving.text.tools.families import parser_of_template, tool_parser
from evenflow.serving.text.tools.offered import OfferedTools
from evenflow.serving.text.tools.tool_parser import ToolParser


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How one request's answers are written, and read."""

    constraint: StructuredOutputs | None = None
    offered: OfferedTools | None = None
    """Tools that the answer may call; None: none."""
    thinking: Thinking | None = None
    parser: type[ToolParser] | None = None

    @property
    def keeps_special_tokens(self) -> bool:
        """True: the marks of thoughts or calls may be special tokens, so the text must be written out with them."""
        return self.thinking is not None or (self.parser is not None and self.parser.keeps_special_tokens)

    def reader(self) -> AnswerReader:
        """A reader for one completion."""
        parser = None if self.parser is None or self.offered is None else self.parser(self.offered.names)
        return AnswerReader(self.thinking, parser)


PLAIN = AnswerForm()
"""Nothing but text."""


class AnswerForms:
    """The forms that one model's answers can have.

    ``parser_name``: "auto" takes what the chat template teaches. ``reasoning``: name of the marks of thoughts; "" for none.
    Raises RegistryError for an unknown name.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, *, parser_name: str = "auto", reasoning: str = ""
    ) -> None:
        taught = None if template is None else parser_of_template(template.source)
        name = taught if parser_name == "auto" else parser_name
        self._parser = None if name is None else tool_parser(name)
        self._thinking = thinking_by(reasoning) if reasoning else None
        self._tokenizer = tokenizer

    def form(self, offered: OfferedTools | None, constraint: StructuredOutputs | None) -> AnswerForm:
        """The form of an answer to a request with these tools and this constraint. Raises InvalidRequest."""
        if offered is None or offered.mode == "none":
            return AnswerForm(constraint, None, self._thinking if constraint is None else None)
        if self._parser is None:
            raise InvalidRequest(
                "tools are given, and this model's chat template has no place for them; allowed: leave them out, or start "
                "the server with --chat-template and --tool-call-parser",
                "tools",
            )
        if constraint is not None and offered.mode == "required":
            raise InvalidRequest("tool_choice wants a call, and response_format another answer; give one", "tool_choice")
        if constraint is None:
            constraint = call_constraint(offered, self._parser.frame, self._special, self._thinking)
        return AnswerForm(constraint, offered, self._thinking, self._parser)

    def _special(self, text: str) -> int | None:
        return self._tokenizer.special_token_id(text)
