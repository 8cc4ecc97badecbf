"""Constraints compiled to matchers of one tokenizer, kept by content, bounded in size and in work.

The engine behind it is llguidance (Rust): it holds no lock of Python's while it works, counts its own steps and gives
up a grammar that takes too many. A compiled grammar is a prototype; each request gets a copy.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evenflow.base.errors import ConstraintFailed, InvalidRequest
from evenflow.serving.core.structured import MAX_CHOICES, StructuredOutputs
from evenflow.serving.grammar.json_schema import read_schema
from evenflow.serving.grammar.structural_tags import parse_structural_tag, to_lark

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

WHITESPACE = r"(\x20|\x0D?\x0A[\x20\x09]{0,32})"
"""What may stand between the parts of a JSON text: one blank, or a new line and its indentation.

It is bounded because a model may never find its way out of blanks.
"""
_MOST_GRAMMARS = 256
_MOST_KEPT_CHARACTERS = 4 << 20


class GrammarCompiler:
    """Grammars of one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """``tokenizer_json``: text of ``tokenizer.json``. ``vocab_size``: width of the logits, padding included.

        Raises ConstraintFailed if the tokenizer is of a kind that the grammar engine does not know.
        """
        from llguidance import LLTokenizer

        if not eos_token_ids:
            raise ConstraintFailed("structured outputs need a model that names its end-of-sequence token")
        try:
            tokenizer = LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=list(eos_token_ids))
        except Exception as error:  # the Rust side raises ValueError, and panics as its own kind
            raise ConstraintFailed(f"structured outputs cannot be had with this tokenizer: {error}") from None
        self.vocab_size = vocab_size
        self._tokenizer: LLTokenizer = tokenizer
        self._prototypes: OrderedDict[StructuredOutputs, LLMatcher] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()

    def cached(self, constraint: StructuredOutputs) -> LLMatcher | None:
        """Return a fresh matcher if ``constraint`` was compiled before, else None at once."""
        with self._lock:
            found = self._prototypes.get(constraint)
            if found is None:
                return None
            self._prototypes.move_to_end(constraint)
        return found.deep_copy()

    def compile(self, constraint: StructuredOutputs) -> LLMatcher:
        """Return a fresh matcher. Raises InvalidRequest for what cannot be read, ConstraintFailed for what is too complex."""
        if (known := self.cached(constraint)) is not None:
            return known
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar_text(constraint), log_level=0, limits=_limits())
        _check(matcher, constraint)
        matcher.compute_bitmask()  # a grammar that allows nothing shows it only here
        _check(matcher, constraint)
        with self._lock:
            self._prototypes[constraint] = matcher
            self._characters += _size(constraint)
            while len(self._prototypes) > _MOST_GRAMMARS or self._characters > _MOST_KEPT_CHARACTERS:
                self._characters -= _size(self._prototypes.popitem(last=False)[0])
        return matcher.deep_copy()


def grammar_text(constraint: StructuredOutputs) -> str:
    """Return ``constraint`` in llguidance's own language. Raises InvalidRequest, naming the field."""
    from llguidance import LLMatcher

    kind = constraint.kind
    if kind in ("json", "json_object"):
        schema = {"type": "object"} if kind == "json_object" else read_schema(constraint.json or "", "json")
        whitespace = WHITESPACE if constraint.whitespace_pattern is None else constraint.whitespace_pattern
        return LLMatcher.grammar_from_json_schema(
            json.dumps(schema), overrides={"whitespace_pattern": whitespace} if whitespace else {"whitespace_flexible": False}
        )
    if kind == "regex":
        return LLMatcher.grammar_from_regex(ascii_classes(constraint.regex or ""))
    if kind == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(_quoted, _choices(constraint.choice or ""))))
    if kind == "structural_tag":
        return LLMatcher.grammar_from_lark(to_lark(parse_structural_tag(constraint.structural_tag or "")))
    return LLMatcher.grammar_from_lark(_lark(constraint.grammar or ""))


def ascii_classes(pattern: str) -> str:
    r"""Return ``pattern`` with ``\d``, ``\w`` and ``\s`` as ASCII classes, as in ECMAScript; Rust's are those of Unicode."""
    out: list[str] = []
    is_in_class, i = False, 0
    while i < len(pattern):
        char = pattern[i]
        if char == "\\" and i + 1 < len(pattern):
            pair = pattern[i : i + 2]
            inside = _ASCII.get(pair)
            out.append(pair if inside is None else inside if is_in_class else f"[{inside}]")
            i += 2
            continue
        if char == "[" and not is_in_class:
            is_in_class = True
        elif char == "]" and is_in_class and pattern[i - 1] != "[":
            is_in_class = False
        out.append(char)
        i += 1
    return "".join(out)


_ASCII = {r"\d": "0-9", r"\w": "0-9A-Za-z_", r"\s": r"\x20\t\n\r\f\v"}


def _choices(text: str) -> list[str]:
    try:
        choices = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"choice is no JSON array: {error}", "choice") from None
    if not isinstance(choices, list) or not choices or not all(isinstance(one, str) and one for one in choices):
        raise InvalidRequest("choice must be a list of texts, none of them empty", "choice")
    if len(choices) > MAX_CHOICES:
        raise InvalidRequest(f"choice has {len(choices)} texts; allowed: at most {MAX_CHOICES}", "choice")
    return choices


def _lark(text: str) -> str:
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(text)
    except Exception as error:  # a parser of its own, with errors and recursion of its own
        raise InvalidRequest(f"grammar is neither Lark nor GBNF: {_first_line(str(error))}", "grammar") from None


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _check(matcher: LLMatcher, constraint: StructuredOutputs) -> None:
    if matcher.is_error():
        said = _first_line(matcher.get_error())
        empty = "no text can follow it" if "NoExtension" in said else said
        raise ConstraintFailed(f"{constraint.kind} cannot be followed: {empty}", constraint.kind)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip() != "<non-verbose/>"]
    return " ".join(lines[:6])[:300] or "no reason given"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _size(constraint: StructuredOutputs) -> int:
    return 64 + len(getattr(constraint, constraint.kind) if constraint.kind != "json_object" else "")
