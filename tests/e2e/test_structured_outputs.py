"""Constrained answers through the whole engine: they validate, and nobody else notices them."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from engine_harness import EngineHarness

from evenflow.base.errors import InvalidRequest
from evenflow.serving.core.structured import StructuredOutputs

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 999}, "ok": {"enum": ["yes", "no"]}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}
JSON = StructuredOutputs(json=SCHEMA, whitespace_pattern=" ")
DIGITS = StructuredOutputs(regex="[0-9]{3}")


@pytest.fixture(scope="module")
def engine(tiny_model, tiny_adapters):
    return EngineHarness(tiny_model, tiny_adapters, max_model_len=128, seed=3)


def constrained(engine, constraint=JSON, adapter=None, prompt=(5, 6, 7), **sampling):
    settings = {"max_tokens": 90, "ignore_eos": False, **sampling}
    return engine.submit(list(prompt), adapter, structured_outputs=constraint, **settings)


def check(engine, request):
    answer = engine.answers[request]
    assert answer.last.error_type is None, answer.last.error
    assert answer.last.finish_reason == "stop"
    jsonschema.validate(json.loads(answer.text), SCHEMA)


def test_answers_validate_greedy_and_sampled_with_every_adapter(engine):
    requests = [
        constrained(engine, adapter=adapter, temperature=temperature, seed=seed)
        for adapter in (None, "r1", "r8", "pattern")
        for temperature, seed in ((0.0, None), (1.0, 1), (1.0, 2))
    ]
    engine.run()
    for request in requests:
        check(engine, request)
    engine.assert_nothing_leaked()


def test_neighbours_get_the_very_tokens_they_get_alone(engine):
    prompts = [([9, 10, 11], "r3"), ([12, 13], None), ([20] * 30, "r64")]
    alone = [engine.generate(one)[0] for one in prompts]
    requests = [constrained(engine, DIGITS), constrained(engine)]
    assert engine.generate(*prompts) == alone
    engine.run()
    assert re.fullmatch("[0-9]{3}", engine.answers[requests[0]].text)
    check(engine, requests[1])


def test_a_constrained_answer_does_not_depend_on_the_batch(engine):
    first = constrained(engine, temperature=1.0, seed=11)
    engine.run()
    second = constrained(engine, temperature=1.0, seed=11)
    engine.generate(*[([30 + i] * 9, None) for i in range(6)])
    engine.run()
    assert engine.answers[first].token_ids == engine.answers[second].token_ids


def test_preemption_and_chunks_change_nothing(tiny_model):
    long = StructuredOutputs(regex="([a-z] ){30}")

    def answers(**settings) -> tuple[EngineHarness, list[str]]:
        harness = EngineHarness(tiny_model, max_model_len=112, seed=3, **settings)
        harness.generate(*[([1, 2], None)] * 60, max_tokens=1)  # teaches the admission to expect short answers
        requests = [constrained(harness, long, prompt=[40 + i] * 20, temperature=1.0, seed=i) for i in range(5)]
        harness.run()
        return harness, [harness.answers[request].text for request in requests]

    roomy, wanted = answers()
    page_bytes = roomy.engine.ready().page_bytes
    tight, texts = answers(memory_bytes=8 * page_bytes, max_batch_tokens=16)
    assert tight.scheduler.snapshot().num_preemptions > 0
    assert texts == wanted
    assert all(re.fullmatch("([a-z] ){30}", text) for text in texts)


def test_max_tokens_cuts_honestly(engine):
    request = constrained(engine, max_tokens=3)
    engine.run()
    assert engine.answers[request].last.finish_reason == "length"
    assert len(engine.answers[request].token_ids) == 3


def test_min_tokens_and_ignore_eos_give_way_to_the_end_of_the_constraint(engine):
    requests = [constrained(engine, DIGITS, min_tokens=20), constrained(engine, DIGITS, ignore_eos=True)]
    engine.run()
    for request in requests:
        assert re.fullmatch("[0-9]{3}", engine.answers[request].text)
        assert engine.answers[request].last.finish_reason == "stop"


def test_a_bad_constraint_is_refused_beside_the_steps_of_others(engine):
    bad = [
        constrained(engine, StructuredOutputs(regex="(")),
        constrained(engine, StructuredOutputs(json={"type": "object", "shade": 1})),
        constrained(engine, StructuredOutputs(json={"$ref": "#"})),
    ]
    good = engine.submit([1, 2, 3])
    engine.run()
    assert len(engine.answers[good].token_ids) == 8
    for request in bad:
        last = engine.answers[request].last
        assert last.error_type in ("ConstraintFailed", "InvalidRequest")
        assert last.param in ("regex", "json")
    engine.assert_nothing_leaked()


def test_an_abort_while_compiling_or_answering_leaves_nothing(engine):
    fresh = [constrained(engine, StructuredOutputs(regex=f"[a-z]{{{i}}}")) for i in range(1, 6)]
    engine.engine.abort(fresh[:3])
    engine.step()
    engine.engine.abort(fresh)
    engine.run()
    assert not engine.engine.has_work
    assert not engine.engine._constraints._answers
    engine.assert_nothing_leaked()


def test_charges_are_those_of_any_answer(engine):
    request = constrained(engine, DIGITS)
    engine.run()
    usage = engine.answers[request].last.usage
    assert usage.completion_tokens == len(engine.answers[request].token_ids)
    assert usage.service == usage.prompt_tokens + 2 * usage.completion_tokens


def test_two_constraints_are_refused():
    with pytest.raises(InvalidRequest, match="exactly one"):
        StructuredOutputs(regex="a", choice=["b"])
