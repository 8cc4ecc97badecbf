"""Rules for tokens through the whole engine, with adapters and in mixed batches: every choice is the one by hand.

The oracle are the log-probabilities of the whole vocabulary, which are the model's own, before any rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from engine_harness import EngineHarness

from evenflow.serving.client.messages import Logprobs
from evenflow.serving.text import Tokenizer
from evenflow.serving.text.bad_words import bad_word_ids

ALLOWED = (7, 19, 33, 34, 35, 101, 200)
ADAPTERS = (None, "r1", "r8", "r64", "pattern")
Rule = Callable[[Sequence[int], int], bool]
"""(output so far, token) to whether it may come."""


@pytest.fixture(scope="module")
def engine(tiny_model, tiny_adapters):
    return EngineHarness(tiny_model, tiny_adapters, max_model_len=128, seed=3)


def run(engine: EngineHarness) -> dict[str, list[Logprobs]]:
    """What every request's tokens were worth, by request."""
    scores: dict[str, list[Logprobs]] = {}
    while engine.engine.has_work:
        for output in engine.engine.step():
            answer = engine.answers[output.request_id]
            answer.token_ids += output.token_ids
            answer.text += output.text
            answer.last = output
            scores.setdefault(output.request_id, []).extend(output.logprobs)
    return scores


def by_hand(entry: Logprobs, output: Sequence[int], may_come: Rule) -> int:
    return next(token_id for token_id, _, _ in entry.top if may_come(output, token_id))


def without(words: Sequence[tuple[int, ...]]) -> Rule:
    def may_come(output: Sequence[int], token_id: int) -> bool:
        return all((*output, token_id)[-len(word) :] != word for word in words)

    return may_come


def rules_of(engine: EngineHarness) -> list[tuple[dict, Rule]]:
    """Fields of requests, and what they mean. The bad words are what the model would say."""
    [said] = engine.generate(([5, 6, 7], "r64"), max_tokens=10)
    pairs = tuple(itertools.pairwise(said[:5]))
    words = (*pairs, (said[5],), tuple(said[6:9]))
    return [
        ({}, lambda output, token_id: True),
        ({"allowed_token_ids": ALLOWED}, lambda output, token_id: token_id in ALLOWED),
        ({"bad_word_ids": words}, without(words)),
        (
            {"allowed_token_ids": ALLOWED, "bad_word_ids": ((19,), (33, 7), (34, 34))},
            lambda output, token_id: token_id in ALLOWED and without([(19,), (33, 7), (34, 34)])(output, token_id),
        ),
    ]


def test_every_choice_in_a_mixed_batch_is_the_one_by_hand(engine):
    wanted: dict[str, Rule] = {}
    for fields, may_come in rules_of(engine):
        for adapter in ADAPTERS:
            wanted[engine.submit([5, 6, 7], adapter, max_tokens=10, logprobs=-1, **fields)] = may_come
    scores = run(engine)
    seen = set()
    for request, may_come in wanted.items():
        output = engine.answers[request].token_ids
        assert len(output) == len(scores[request]) == 10
        for place, (token_id, entry) in enumerate(zip(output, scores[request], strict=True)):
            assert len(entry.top) == len({one for one, _, _ in entry.top}) > 256, "the whole vocabulary is told"
            assert token_id == by_hand(entry, output[:place], may_come)
        seen.add(tuple(output))
    assert len(seen) > len(ADAPTERS), "the rules change what is said"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_neighbours_of_rules_get_the_very_tokens_they_get_alone(engine, temperature):
    def ask(number: int) -> str:
        fields = rules[number % len(rules)][0]
        adapter = ADAPTERS[number % len(ADAPTERS)]
        return engine.submit([30 + number] * 5, adapter, max_tokens=8, temperature=temperature, seed=number, **fields)

    rules = rules_of(engine)
    alone = []
    for number in range(10):
        request = ask(number)
        run(engine)
        alone.append(engine.answers[request].token_ids)
    together = [ask(number) for number in range(10)]
    run(engine)
    assert [engine.answers[request].token_ids for request in together] == alone


def test_a_word_given_as_text_is_not_in_the_answers_text(engine, tiny_model):
    encode = partial(Tokenizer.from_folder(tiny_model).encode, add_special_tokens=False)
    request = engine.submit([5, 6, 7], "r8", max_tokens=12, logprobs=0)
    tokens = [entry.token for entry in run(engine)[request]]
    word = next(token for token in tokens if token.strip() and token.isprintable() and "�" not in token)
    assert word in engine.answers[request].text
    again = engine.submit([5, 6, 7], "r8", max_tokens=12, bad_word_ids=bad_word_ids([word], encode))
    run(engine)
    assert word not in engine.answers[again].text
    engine.assert_nothing_leaked()


def test_rules_that_leave_nothing_end_that_request_alone(engine):
    hopeless = engine.submit([5, 6, 7], None, allowed_token_ids=(7,), bad_word_ids=((7,),))
    fine = engine.submit([5, 6, 7], "r1", allowed_token_ids=(7,))
    run(engine)
    assert engine.answers[hopeless].last.error_type == "ConstraintFailed"
    assert engine.answers[fine].token_ids == [7] * 8
    engine.assert_nothing_leaked()
