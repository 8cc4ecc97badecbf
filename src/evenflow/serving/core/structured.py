"""What an answer must look like, as a request says it. Field names are those of vLLM's ``structured_outputs``.

Nothing is compiled here: see ``evenflow.serving.grammar``.
"""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evenflow.base.errors import InvalidRequest

MAX_TEXT = 65_536
"""Characters of a schema, a regular expression or a grammar, and of all choices together."""
MAX_CHOICES = 4_096
MAX_DEPTH = 64
"""Levels of nesting of a JSON schema."""

KINDS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")


class TokenMask(Protocol):
    """Says which tokens may come next in one request's answer."""

    def words(self) -> memoryview:
        """Return one bit per token id, lowest bit first, in 32-bit words of the machine's byte order: 1 is allowed.

        Waits until the mask of the tokens so far is known. Raises ConstraintFailed if it cannot be computed.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """Exactly one constraint on an answer. Raises InvalidRequest for none or several, or for one that is too long.

    Mappings and sequences are kept as compact JSON text, so that equal constraints are equal values.
    """

    json: str | None = None
    """A JSON schema (draft 2020-12), as text or as a mapping."""
    json_object: bool = False
    """Any JSON object."""
    regex: str | None = None
    """A regular expression (Rust's syntax: no look-around, no back-references) that the whole answer matches."""
    choice: str | None = None
    """The answer is one of these texts: a sequence of strings, or a JSON array as text."""
    grammar: str | None = None
    """A context-free grammar: Lark, as llguidance reads it, or GBNF, as llama.cpp does."""
    structural_tag: str | None = None
    """Free text in which certain triggers begin parts with a schema: a mapping with ``structures`` and ``triggers``."""
    whitespace_pattern: str | None = None
    """With ``json`` or ``json_object``: what may stand between the parts of the JSON text; None: one blank, or a new line;
    empty: nothing."""

    def __post_init__(self) -> None:
        for name in ("json", "choice", "structural_tag"):
            value: Any = getattr(self, name)
            if isinstance(value, Mapping | bool) or (isinstance(value, Sequence) and not isinstance(value, str)):
                object.__setattr__(self, name, _compact(value, name))
        given = [name for name in KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise InvalidRequest(
                f"structured_outputs has {said}; allowed: exactly one of {', '.join(KINDS)}", "structured_outputs"
            )
        for name in (*given, "whitespace_pattern"):
            text = getattr(self, name)
            if isinstance(text, str) and len(text) > MAX_TEXT:
                raise InvalidRequest(f"{name} has {len(text)} characters; allowed: at most {MAX_TEXT}", name)
            if not isinstance(text, str | bool | None):
                raise InvalidRequest(f"{name} is {type(text).__name__}; allowed: text", name)

    @property
    def kind(self) -> str:
        """Which of ``KINDS`` is given."""
        return next(name for name in KINDS if getattr(self, name) not in (None, False))


def _compact(value: Any, name: str) -> str:
    try:
        return json_text.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} cannot be written as JSON: {error}", name) from None
