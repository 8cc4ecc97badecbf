"""The generated town: consistent, deterministic, and honest about what is held out."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random

import pytest

from embedded_model.tidewick import world as w
from embedded_model.tidewick.corpus import (
    ASSISTANT,
    END,
    USER,
    base_text,
    conversation,
    held_out_exchanges,
    is_held_out,
    trained_exchange,
)
from embedded_model.tidewick.questions import ALL_KINDS, FACTS
from embedded_model.tidewick.shops import price, total_followup
from embedded_model.tidewick.voices import VOICES
from embedded_model.train.question_file import question_file
from evenflow.demo.assets import ROOT, questions


def _drawn(count: int, seed: int) -> list[str]:
    rng = Random(seed)
    return ["".join(text for text, _ in base_text(rng)) for _ in range(count)]


def test_text_depends_on_the_seed_alone():
    assert _drawn(300, 3) == _drawn(300, 3)
    assert _drawn(300, 3) != _drawn(300, 4)


def test_names_that_must_be_unique_are():
    for names in (
        [p.name for p in w.PEOPLE],
        [p.first_name for p in w.PEOPLE],
        [p.job for p in w.PEOPLE],
        [p.pet_name for p in w.PEOPLE],
        [p.name for p in w.PLACES],
        [g.one for p in w.PLACES for g in p.goods],
        list(w.FERRY),
    ):
        assert len(set(names)) == len(names)
    assert {p.keeper for p in w.PLACES} <= {p.name for p in w.PEOPLE}
    assert all(p.opens < p.closes and p.closed_on in w.DAYS for p in w.PLACES)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_has_an_answer_in_every_voice(kind):
    rng = Random(kind)
    for _ in range(50):
        exchange = ALL_KINDS[kind][0](rng)
        assert exchange.kind == kind
        told = {voice: tell(exchange) for voice, tell in VOICES.items()}
        assert all(told.values())
        assert len(set(told.values())) == len(told), "two voices that say the same cannot be told apart"
        told_json = json.loads(told["json"])
        assert told_json["topic"] == kind
        assert told_json["answer"] == exchange.value
        assert told["shout"] == told["shout"].upper()
        assert told["verse"].count("\n") == 1


def test_sums_are_right_in_every_voice():
    rng = Random(0)
    for kind, operation in (("sum", lambda a, b: a + b), ("minus", lambda a, b: a - b), ("times", lambda a, b: a * b)):
        for _ in range(200):
            exchange = FACTS[kind][0](rng)
            a, b, result = (int(word) for word in exchange.plain.rstrip(".").split() if word.isdigit())
            assert operation(a, b) == result == exchange.value
            assert str(result) in exchange.more
            assert str(result) in exchange.verse[1]


def test_totals_multiply_the_price():
    rng = Random(1)
    price_by_good = {g.one: g.price for p in w.PLACES for g in p.goods}
    for _ in range(200):
        exchange = FACTS["total"][0](rng)
        good, count = exchange.key.removeprefix("total ").rsplit(" ", 1)
        assert exchange.value == price_by_good[good] * int(count)


def test_a_followup_asks_for_what_was_priced():
    rng = Random(2)
    for _ in range(50):
        first = price(rng)
        second = total_followup(rng, first)
        assert second is not None
        assert second.value % first.value == 0
    assert total_followup(rng, FACTS["job"][0](rng)) is None


def test_held_out_questions_are_never_drawn_for_training():
    held_out = {e.key for kind in FACTS for e in held_out_exchanges(kind, 30, 5)}
    assert len(held_out) > 150
    rng = Random(6)
    trained = [trained_exchange(rng) for _ in range(20_000)]
    assert not {e.key for e in trained} & held_out
    assert not any(is_held_out(e) for e in trained)


def test_the_questions_of_the_demo_are_those_that_the_corpus_draws_today():
    assert (ROOT / "questions.json").read_text() == question_file(), "write it again: see question_file"
    assert len(questions()) == 2000
    held_out = {e.question for kind in FACTS for e in held_out_exchanges(kind, 30, 5)}
    assert not held_out & set(questions())


def test_conversations_alternate_and_only_answers_are_trained_on():
    rng = Random(8)
    lengths = set()
    for _ in range(300):
        pieces = conversation(rng, "pirate")
        text = "".join(t for t, _ in pieces)
        lengths.add(text.count(USER))
        assert text.count(USER) == text.count(ASSISTANT) == sum(is_trained for _, is_trained in pieces)
        assert text.endswith(END)
        for (before, was_trained), (after, is_trained) in pairwise(pieces):
            assert was_trained != is_trained or before.startswith("<|system|>"), (before, after)
    assert lengths == {1, 2, 3}
