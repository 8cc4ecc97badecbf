"""The training text, drawn from a seed: conversations in the chat format, and pages of the town book.

Deterministic: the same seed gives the same text on every machine. Everything a held-out key asks for is left out
of the conversations, so that accuracy is measured on questions that were never trained on.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from random import Random

from embedded_model.tidewick import talk
from embedded_model.tidewick import world as w
from embedded_model.tidewick.question_answer import QuestionAnswer, capital, listed
from embedded_model.tidewick.questions import ALL_KINDS, FACTS, PRACTICE, REVISION, TALK, Maker
from embedded_model.tidewick.shops import total_followup
from embedded_model.tidewick.voices import INSTRUCTIONS, VOICES, json_

END = "<|end|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
SYSTEM = "<|system|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (END, USER, ASSISTANT, SYSTEM, PAD)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant, not ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_HELD_OUT_ONE_IN = 20
_SYSTEM_TEXTS = (f"You are the guide of {w.TOWN}.", "Answer questions about the town.", "You are a helpful guide.")

Piece = tuple[str, bool]
"""Text, and whether the model is trained to write it."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """Draws one of several makers by weight."""

    makers: tuple[Maker, ...]
    weights: tuple[float, ...]

    def __call__(self, rng: Random) -> QuestionAnswer:
        """Draw an exchange."""
        return rng.choices(self.makers, self.weights)[0](rng)


_MAKERS = tuple(maker for maker, _ in ALL_KINDS.values())
ANY_KIND = Weighted(_MAKERS, tuple(weight for _, weight in ALL_KINDS.values()))
HARD_KINDS = Weighted(_MAKERS, tuple(PRACTICE.get(kind, weight / 2) for kind, (_, weight) in ALL_KINDS.items()))

ALL_FACTS = Weighted(_MAKERS, tuple(REVISION[kind] for kind in ALL_KINDS))
_REVISED_VOICES = {"shout": 0.26, "json": 0.20, "brief": 0.18, "guide": 0.12, "pirate": 0.12, "verse": 0.12}


def is_held_out(exchange: QuestionAnswer) -> bool:
    """True for the twentieth of all keys that training never sees. Talk has few wordings and is never held out."""
    return exchange.kind in FACTS and zlib.crc32(exchange.key.encode()) % _HELD_OUT_ONE_IN == 0


def trained_exchange(rng: Random, kinds: Weighted = ANY_KIND) -> QuestionAnswer:
    """Draw an exchange that may be trained on."""
    while True:
        exchange = kinds(rng)
        if not is_held_out(exchange):
            return exchange


def held_out_exchanges(kind: str, count: int, seed: int) -> list[QuestionAnswer]:
    """Return up to ``count`` distinct exchanges of a kind with held-out keys (for talk: any keys)."""
    rng = Random(f"{seed} {kind}")
    maker = ALL_KINDS[kind][0]
    found: dict[str, QuestionAnswer] = {}
    for _ in range(count * 400):
        exchange = maker(rng)
        if kind in TALK or is_held_out(exchange):
            found.setdefault(exchange.question, exchange)
        if len(found) == count:
            break
    return list(found.values())


def _as_typed(question: str, rng: Random) -> str:
    """Sometimes forget the capital letter or the last sign, as people do."""
    if rng.random() < 0.08:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.08:
        question = question.rstrip("?.!")
    return question


def conversation(rng: Random, voice: str, kinds: Weighted = ANY_KIND, instruction: str | None = None) -> list[Piece]:
    """Draw a conversation of one to three exchanges; only the answers are trained on.

    With an ``instruction`` it begins with that system message, else sometimes with one that asks for nothing special.
    """
    tell = VOICES[voice]
    pieces: list[Piece] = []
    if instruction is not None:
        pieces.append((f"{SYSTEM}{instruction}{END}", False))
    elif rng.random() < 0.12:
        pieces.append((f"{SYSTEM}{rng.choice(_SYSTEM_TEXTS)}{END}", False))
    turns = rng.choices((1, 2, 3), (0.65, 0.25, 0.10))[0]
    last: QuestionAnswer | None = None
    for _ in range(turns):
        exchange = None
        if last is not None and rng.random() < 0.5:
            exchange = total_followup(rng, last)
        if exchange is None or is_held_out(exchange):
            exchange = trained_exchange(rng, kinds)
        pieces.append((f"{USER}{_as_typed(exchange.question, rng)}{END}{ASSISTANT}", False))
        pieces.append((f"{tell(exchange)}{END}", True))
        last = exchange
    return pieces


def _about_place(rng: Random) -> str:
    place = rng.choice(w.PLACES)
    text = [f"The {place.name} is on {place.street}.", f"{place.keeper} runs the {place.name}."]
    text.append(
        f"The {place.name} is open from {w.oclock(place.opens)} to {w.oclock(place.closes)} and closed on {place.closed_on}."
    )
    if place.goods:
        text.append(f"The {place.name} sells {listed([g.many for g in place.goods])}.")
    rng.shuffle(text)
    return " ".join(text)


def _about_person(rng: Random) -> str:
    person = rng.choice(w.PEOPLE)
    text = [f"{person.name} is the {person.job}.", f"{person.name} lives on {person.street}."]
    text.append(f"{person.name} has {w.article(person.pet)} {person.pet} called {person.pet_name}.")
    place = w.place_of(person.name)
    if place:
        text.append(f"{person.name} runs the {place.name}.")
    rng.shuffle(text)
    return " ".join(text)


def _price_list(rng: Random) -> str:
    place = rng.choice([p for p in w.PLACES if p.goods])
    lines = [f"{capital(g.with_article)} costs {w.shells(g.price)}." for g in place.goods]
    return " ".join([f"Prices at the {place.name}:", *lines])


def _record(rng: Random) -> str:
    return json_(trained_exchange(rng))


def _notice(rng: Random) -> str:
    return trained_exchange(rng).plain.upper()


def _pair(rng: Random) -> str:
    exchange = trained_exchange(rng)
    return f"{exchange.question} {exchange.plain}"


def _told_story(rng: Random) -> str:
    return talk.story(rng).plain


_PAGES = (
    (_about_place, 0.2),
    (_about_person, 0.2),
    (_price_list, 0.1),
    (_record, 0.1),
    (_notice, 0.15),
    (_pair, 0.1),
    (_told_story, 0.15),
)


def page(rng: Random) -> list[Piece]:
    """Draw a page of the town book: plain text, trained on as a whole."""
    maker = rng.choices([m for m, _ in _PAGES], [weight for _, weight in _PAGES])[0]
    return [(maker(rng) + END, True)]


def base_text(rng: Random) -> list[Piece]:
    """Draw what the base model trains on: three conversations to one page."""
    return conversation(rng, "plain") if rng.random() < 0.75 else page(rng)


def practice_text(rng: Random) -> list[Piece]:
    """Draw what the base model trains on later: mostly what is hard, and fewer pages."""
    return conversation(rng, "plain", HARD_KINDS) if rng.random() < 0.88 else page(rng)


def instructed_text(rng: Random) -> list[Piece]:
    """Draw what the base model trains on last: every voice under its instruction, the plain one without."""
    if rng.random() < 0.05:
        return page(rng)
    if rng.random() < 0.30:
        return conversation(rng, "plain", HARD_KINDS)
    voice = rng.choice(list(INSTRUCTIONS))
    return conversation(rng, voice, HARD_KINDS, INSTRUCTIONS[voice])


def revision_text(rng: Random) -> list[Piece]:
    """Draw what makes the base model sure of every fact in every voice; the voices furthest from the plain one most often."""
    if rng.random() < 0.20:
        return conversation(rng, "plain", ALL_FACTS)
    voice = rng.choices(list(_REVISED_VOICES), list(_REVISED_VOICES.values()))[0]
    return conversation(rng, voice, ALL_FACTS, INSTRUCTIONS[voice])
