"""Constrained and free answers in one batch, with everything that may move them: adapters, prefixes, preemption, ranks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import jsonschema
import pytest
from engine_harness import EngineHarness

from evenflow import LLM, SamplingParams
from evenflow.serving.core.structured import StructuredOutputs

SCHEMA = {
    "type": "object",
    "properties": {
        "who": {"type": "string", "pattern": "^[a-z]{3,12}$"},
        "n": {"type": "integer", "minimum": -99, "maximum": 99},
    },
    "required": ["who", "n"],
    "additionalProperties": False,
}
WORDS = "([a-z]{2,6} ){6}"
SHARED = list(range(40, 90))
"""The beginning of every prompt: three whole pages."""


@dataclass(frozen=True)
class Ask:
    """One request, whatever stands beside it."""

    prompt: tuple[int, ...]
    adapter: str | None
    sampling: SamplingParams

    def check(self, text: str) -> None:
        """The text is what its constraint says."""
        constraint = self.sampling.structured_outputs
        if constraint is not None and constraint.regex is not None:
            assert re.fullmatch(constraint.regex, text)
        elif constraint is not None:
            jsonschema.validate(json.loads(text), SCHEMA)


def asks(adapters: tuple[str | None, ...]) -> list[Ask]:
    """Every kind of constraint and none, with every adapter, greedy and sampled."""
    kinds = (None, StructuredOutputs(json=SCHEMA, whitespace_pattern=""), StructuredOutputs(regex=WORDS), None)
    found = []
    for i, adapter in enumerate(adapters):
        for j, constraint in enumerate(kinds):
            sampling = SamplingParams(
                temperature=float((i + j) % 2),
                seed=10 * i + j,
                max_tokens=20 if constraint is None else 70,
                ignore_eos=constraint is None,
                structured_outputs=constraint,
            )
            found.append(Ask((*SHARED, 100 + i, 7 + j), adapter, sampling))
    return found


def submit(engine: EngineHarness, ask: Ask) -> str:
    fields = {name: getattr(ask.sampling, name) for name in ("temperature", "seed", "max_tokens", "ignore_eos")}
    return engine.submit(list(ask.prompt), ask.adapter, structured_outputs=ask.sampling.structured_outputs, **fields)


def alone(engine: EngineHarness, ask: Ask) -> list[int]:
    request = submit(engine, ask)
    engine.run()
    assert engine.answers[request].last.finish_reason == ("length" if ask.sampling.ignore_eos else "stop")
    ask.check(engine.answers[request].text)
    return engine.answers[request].token_ids


def test_with_adapters_prefixes_and_preemption_everyone_gets_what_they_get_alone(tiny_model, tiny_adapters):
    wanted = asks((None, "r1", "r8", "pattern", "r3"))
    few = {name: folder for name, folder in tiny_adapters.items() if name != "r64"}
    roomy = EngineHarness(tiny_model, tiny_adapters, max_model_len=144, enable_prefix_caching=False, check_every=8)
    expected = [alone(roomy, ask) for ask in wanted]
    assert len({tuple(tokens) for tokens in expected}) == len(expected)
    tight = EngineHarness(
        tiny_model,
        few,
        max_model_len=144,
        memory_bytes=40 * roomy.engine.ready().page_bytes,
        max_batch_tokens=48,
        check_every=8,
    )
    tight.generate(*[([1, 2], None)] * 60, max_tokens=1)  # teaches the admission to expect short answers
    requests = [submit(tight, ask) for ask in wanted]
    tight.run()
    for ask, request, tokens in zip(wanted, requests, expected, strict=True):
        answer = tight.answers[request]
        assert answer.last.error_type is None, answer.last.error
        ask.check(answer.text)
        assert answer.token_ids == tokens
    assert tight.scheduler.snapshot().num_preemptions > 0
    assert any(tight.answers[request].last.usage.cached_tokens for request in requests)
    tight.assert_nothing_leaked()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_ranks_hold_answers_to_their_constraints_as_one_does(tiny_model, tiny_adapters):
    wanted = asks((None, "r8", "r64"))
    engine = EngineHarness(tiny_model, tiny_adapters, max_model_len=144, check_every=8)
    expected = [alone(engine, ask) for ask in wanted]
    settings = {"dtype": "float32", "memory": "8MiB", "num_threads": 1, "max_model_len": 144, "max_batch_tokens": 64}
    with LLM(tiny_model, tiny_adapters, tensor_parallel=2, **settings) as llm:
        prompts = [list(ask.prompt) for ask in wanted]
        results = llm.generate(prompts, [ask.sampling for ask in wanted], adapters=[ask.adapter for ask in wanted])
    for ask, result, tokens in zip(wanted, results, expected, strict=True):
        assert result.token_ids == tokens
        ask.check(result.text)
