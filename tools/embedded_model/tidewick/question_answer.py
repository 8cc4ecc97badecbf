"""One question with its one right answer, told in every register a voice may need."""

from __future__ import annotations

from dataclasses import dataclass

Json = str | int | bool | None | list[str]


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question and its one right answer."""

    kind: str
    key: str
    """What was asked, so that a share of the keys can be kept out of training: the operands for arithmetic, the
    wording for facts (a model can only know a fact it has read)."""
    question: str
    plain: str
    brief: str
    value: Json
    more: str
    """The plain answer and what a talkative guide would add; for sums, the working."""
    verse: tuple[str, str]
    """Two rhyming lines that hold the answer."""
    unit: str | None = None


def listed(items: list[str]) -> str:
    """Join as in: a, b and c."""
    return ", ".join(items[:-1]) + " and " + items[-1]


def capital(text: str) -> str:
    """Upper-case the first letter only."""
    return text[0].upper() + text[1:]
