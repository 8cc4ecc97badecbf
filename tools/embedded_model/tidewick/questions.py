"""The kinds of questions: how to draw one of each from a seeded ``random.Random``, and how often training does.

Facts and sums are asked in ``shops``, ``townsfolk`` and ``schoolroom``; what is said beside facts is in ``talk``.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from embedded_model.tidewick import schoolroom, shops, talk, townsfolk
from embedded_model.tidewick.question_answer import QuestionAnswer

Maker = Callable[[Random], QuestionAnswer]

FACTS: dict[str, tuple[Maker, float]] = {
    "price": (shops.price, 1.0), "total": (shops.total, 2.5), "change": (shops.change, 0.8), "where": (shops.where, 0.6),
    "sells": (shops.sells, 0.6), "buy": (shops.buy, 1.0), "hours": (shops.hours, 0.7), "closed": (shops.closed, 0.6),
    "open_at": (shops.open_at, 0.8), "runs": (shops.runs, 0.6), "job": (townsfolk.job, 0.9), "who": (townsfolk.who, 0.7),
    "home": (townsfolk.home, 0.9), "pet": (townsfolk.pet, 1.0), "ferry": (townsfolk.ferry, 0.5), "day": (schoolroom.day, 0.8),
    "month": (schoolroom.month, 0.4), "sum": (schoolroom.sum_, 2.0), "minus": (schoolroom.minus, 1.5),
    "times": (schoolroom.times, 0.7), "spell": (schoolroom.spell, 1.2), "opposite": (schoolroom.opposite, 0.5),
}  # fmt: skip
"""Kinds of factual questions: how to draw one, and how often it is drawn."""

TALK: dict[str, tuple[Maker, float]] = {
    "hello": (talk.hello, 0.3), "thanks": (talk.thanks, 0.3), "about": (talk.about, 0.4), "unknown": (talk.unknown, 0.8),
    "story": (talk.story, 1.2),
}  # fmt: skip
"""Kinds of talk, in the same form."""

ALL_KINDS = {**FACTS, **TALK}

PRACTICE: dict[str, float] = {
    "sum": 4.0, "minus": 4.5, "times": 1.0, "total": 4.0, "change": 1.5, "price": 1.0, "day": 2.5, "month": 1.0, "spell": 2.5,
    "opposite": 1.0, "open_at": 1.5, "who": 0.8,
}  # fmt: skip
"""Kinds that take longer to learn, with how often they are drawn while they are practised (others: half as often as above)."""

REVISION: dict[str, float] = {
    "price": 1.0, "total": 2.5, "change": 1.0, "where": 0.7, "sells": 0.8, "buy": 1.0, "hours": 0.7, "closed": 0.8,
    "open_at": 2.0, "runs": 0.7, "job": 0.9, "who": 0.9, "home": 1.2, "pet": 1.0, "ferry": 0.9, "day": 1.8, "month": 0.9,
    "sum": 3.0, "minus": 4.0, "times": 0.8, "spell": 1.8, "opposite": 1.0, "hello": 0.2, "thanks": 0.2, "about": 0.3,
    "unknown": 0.5, "story": 0.8,
}  # fmt: skip
"""How often kinds are drawn when all voices revise them: roughly by how many facts a kind has."""
