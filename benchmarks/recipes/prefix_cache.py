"""What the prefix cache saves, and what it costs where nothing repeats.

    python benchmarks/recipes/prefix_cache.py --json benchmarks/results/prefix_cache--MACHINE.json

The 135 M random model, bf16, four adapters of rank 8 on q and v. Each run is new to the cache but for itself:
"shared" gives each adapter one system prompt of 384 tokens and asks 16 questions of 32 tokens under it, one after the
other; "distinct" asks 16 questions of 416 tokens that have nothing in common. With and without cache in turn: A B A B.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from evenflow import LLM, SamplingParams
from evenflow.bench.harness import interleave, paired_ratio, summary, write_result
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import LLAMA_135M, make_model

NUM_ADAPTERS, NUM_QUESTIONS, SYSTEM_TOKENS, QUESTION_TOKENS, OUTPUT_TOKENS = 4, 16, 384, 32, 8


class Scenario:
    """One engine, asked one question at a time: a run's measure is the mean time to the answer."""

    def __init__(self, model: Path, adapters: dict[str, Path], *, caches: bool) -> None:
        self._llm = LLM(model, adapters, memory="256MiB", max_num_seqs=16, enable_prefix_caching=caches)
        self._names = list(adapters)
        self._num_runs = 0
        self.cached_share: dict[str, list[float]] = {"shared": [], "distinct": []}

    def run(self, kind: str) -> float:
        self._num_runs += 1
        random = np.random.default_rng(self._num_runs)
        sampling = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
        system = {name: random.integers(1, 500, SYSTEM_TOKENS).tolist() for name in self._names}
        seconds, cached, asked = [], 0, 0
        for i in range(NUM_QUESTIONS):
            name = self._names[i % len(self._names)]
            head = system[name] if kind == "shared" else random.integers(1, 500, SYSTEM_TOKENS).tolist()
            prompt = [*head, *random.integers(1, 500, QUESTION_TOKENS).tolist()]
            started_s = time.perf_counter()
            [answer] = self._llm.generate([prompt], sampling, adapters=[name])
            seconds.append(time.perf_counter() - started_s)
            cached += answer.usage.cached_tokens
            asked += len(prompt)
        self.cached_share[kind].append(cached / asked)
        return statistics.fmean(seconds)

    def close(self) -> None:
        self._llm.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    results: dict[str, object] = {"unit": "seconds from question to whole answer, mean of a run"}
    with tempfile.TemporaryDirectory() as folder:
        import torch

        model = Path(folder) / "model"
        config = make_model(model, LLAMA_135M, dtype=torch.bfloat16)
        adapters = {f"a{i}": Path(folder) / f"a{i}" for i in range(NUM_ADAPTERS)}
        for seed, path in enumerate(adapters.values()):
            make_adapter(path, config, lora_rank=8, target_modules=("q_proj", "v_proj"), seed=seed)
        scenarios = {"cache": Scenario(model, adapters, caches=True), "none": Scenario(model, adapters, caches=False)}
        try:
            for kind in ("shared", "distinct"):
                samples = interleave({name: partial(s.run, kind) for name, s in scenarios.items()}, args.repeats)
                results[kind] = {
                    **{name: {**summary(values), "samples": values} for name, values in samples.items()},
                    "none / cache": round(paired_ratio(samples["none"], samples["cache"]), 3),
                    "cached part of the prompts": round(statistics.fmean(scenarios["cache"].cached_share[kind]), 3),
                }
                print(kind, {name: value for name, value in results[kind].items() if name not in scenarios})  # type: ignore[attr-defined]
        finally:
            for scenario in scenarios.values():
                scenario.close()
    parameters = {
        "adapters": NUM_ADAPTERS,
        "questions": NUM_QUESTIONS,
        "system_tokens": SYSTEM_TOKENS,
        "question_tokens": QUESTION_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
    }
    write_result(args.json, "prefix_cache", parameters, results)


if __name__ == "__main__":
    main()
