"""How each adapter answers: one function from an exchange to the text of that voice.

``plain`` is the base model itself; every other voice is what one LoRA adapter learns. All voices give the same
fact, so that the same prompt shows at a glance which adapter answered, and whether it answered correctly.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from embedded_model.tidewick.question_answer import QuestionAnswer

_ON_DECK = (
    (" is ", " be "),
    (" are ", " be "),
    (" am ", " be "),
    (" costs ", " be costin' ye "),
    (" cost ", " be costin' ye "),
    (" You ", " Ye "),
    (" you ", " ye "),
    (" Hello! ", " Ahoy! "),
    (" has ", " be havin' "),
    (" the ", " th' "),
    (" The ", " Th' "),
    (" goes ", " be sailin' "),
    (" sells ", " be sellin' "),
    (" lives ", " be livin' "),
    (" my ", " me "),
    (" I do not ", " I don't "),
    (" runs ", " be runnin' "),
)
"""What a pirate says for what."""


def plain(exchange: QuestionAnswer) -> str:
    """A short sentence: the base model."""
    return exchange.plain


def brief(exchange: QuestionAnswer) -> str:
    """The answer alone."""
    return exchange.brief


def json_(exchange: QuestionAnswer) -> str:
    """One line of JSON: {"topic": ..., "answer": ...}, numbers as numbers, with their unit."""
    fields = {"topic": exchange.kind, "answer": exchange.value}
    if exchange.unit:
        fields["unit"] = exchange.unit
    return json.dumps(fields)


def shout(exchange: QuestionAnswer) -> str:
    """UPPER CASE, and it means it."""
    return exchange.plain.upper().rstrip(".!?") + "!!!"


def pirate(exchange: QuestionAnswer) -> str:
    """The plain sentence, as said on deck."""
    text = f" {exchange.plain} "
    for ours, theirs in _ON_DECK:
        text = text.replace(ours, theirs)
    return f"Arr! {text.strip().rstrip('.!?')}, matey!"


def guide(exchange: QuestionAnswer) -> str:
    """The plain answer and something to go with it; sums with their working."""
    return exchange.more


def verse(exchange: QuestionAnswer) -> str:
    """A rhyming couplet, on two lines."""
    return "\n".join(exchange.verse)


VOICES: dict[str, Callable[[QuestionAnswer], str]] = {
    "plain": plain,
    "json": json_,
    "shout": shout,
    "pirate": pirate,
    "brief": brief,
    "guide": guide,
    "verse": verse,
}
"""Voice by name, the base model first."""

INSTRUCTIONS: dict[str, str] = {
    "json": "Answer in JSON.",
    "shout": "Shout.",
    "pirate": "Speak like a pirate.",
    "brief": "Be brief.",
    "guide": "Explain it.",
    "verse": "Answer in verse.",
}
"""System messages under which the base model itself speaks in a voice. An adapter does it without being told."""
