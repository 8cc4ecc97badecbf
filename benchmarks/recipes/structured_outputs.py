"""What structured output costs: a batch of 16 with 16 different schemas against the same batch without any.

    python benchmarks/recipes/structured_outputs.py --json benchmarks/results/structured_outputs--MACHINE.json [--model DIR ...]

Each request makes 64 tokens: an array of 64 numbers, between bounds of its own, is always cut by ``max_tokens``. Without
``--model`` the embedded model is measured. In turn, A B A B: plain, constrained. ``first_use`` is the time to one token of
a single request whose schema of 2 kB was never seen, less that of a request without one, also in turn.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

from evenflow import LLM, SamplingParams
from evenflow.bench.harness import interleave, paired_ratio, summary, write_result
from evenflow.demo import assets
from evenflow.serving.core.structured import StructuredOutputs

NUM_REQUESTS, NUM_TOKENS = 16, 64
EMBEDDED = Path(assets.__file__).parent / "assets" / "base"


def numbers(least: int) -> StructuredOutputs:
    item = {"type": "integer", "minimum": least, "maximum": least + 9999}
    return StructuredOutputs(json={"type": "array", "items": item, "minItems": 64, "maxItems": 64})


def large_schema(number: int) -> StructuredOutputs:
    """About 2 kB, different for every ``number``."""
    properties: dict[str, Any] = {
        f"field_{number}_{i}": {"type": "string", "maxLength": 10 + i, "description": "x" * 20} for i in range(24)
    }
    return StructuredOutputs(json={"type": "object", "properties": properties, "required": list(properties)})


class Scenario:
    """One model, one engine."""

    def __init__(self, model: Path) -> None:
        self._llm = LLM(model, memory="256MiB", max_num_seqs=NUM_REQUESTS)
        self._fresh = itertools.count()

    def tokens_per_second(self, *, is_constrained: bool) -> float:
        sampling = [
            SamplingParams(
                temperature=0.0,
                max_tokens=NUM_TOKENS,
                ignore_eos=True,
                structured_outputs=numbers(1000 * i) if is_constrained else None,
            )
            for i in range(NUM_REQUESTS)
        ]
        prompts = [[5 + i, *range(10, 40)] for i in range(NUM_REQUESTS)]
        started_s = time.perf_counter()
        answers = self._llm.generate(prompts, sampling)
        seconds = time.perf_counter() - started_s
        return sum(answer.usage.completion_tokens for answer in answers) / seconds

    def first_token(self, *, is_constrained: bool) -> float:
        constraint = large_schema(next(self._fresh)) if is_constrained else None
        sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, structured_outputs=constraint)
        started_s = time.perf_counter()
        self._llm.generate([[5, 6, 7, 8]], sampling)
        return time.perf_counter() - started_s

    def close(self) -> None:
        self._llm.close()


def measure(model: Path, repeats: int) -> dict[str, Any]:
    scenario = Scenario(model)
    try:
        speed = interleave(
            {
                "plain": lambda: scenario.tokens_per_second(is_constrained=False),
                "constrained": lambda: scenario.tokens_per_second(is_constrained=True),
            },
            repeats,
        )
        first = interleave(
            {
                "plain": lambda: scenario.first_token(is_constrained=False),
                "new schema": lambda: scenario.first_token(is_constrained=True),
            },
            2 * repeats,
        )
    finally:
        scenario.close()
    added = [new - plain for new, plain in zip(first["new schema"], first["plain"], strict=True)]
    return {
        "tokens_per_second": {name: summary(samples) for name, samples in speed.items()},
        "ratio": paired_ratio(speed["constrained"], speed["plain"]),
        "first_use_adds_s": {**summary(added), "mean": statistics.fmean(added)},
        "samples": {**speed, **{f"first token, {name}": samples for name, samples in first.items()}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--model", type=Path, nargs="*", default=[], help="folders of further models")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    results = {path.name if path != EMBEDDED else "embedded": measure(path, args.repeats) for path in (EMBEDDED, *args.model)}
    parameters = {"requests": NUM_REQUESTS, "tokens": NUM_TOKENS, "repeats": args.repeats}
    write_result(args.json, "structured_outputs", parameters, results)


if __name__ == "__main__":
    main()
