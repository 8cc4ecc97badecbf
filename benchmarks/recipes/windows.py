"""What sliding windows save: time of prompts and of decode steps, and pages of KV that running requests hold.

    python benchmarks/recipes/windows.py --json benchmarks/results/windows--MACHINE.json

The 135 M random model as a Mistral or a Qwen 2, bf16, in this process: no layer has a window, every other layer has
one, or all have. Four requests together, without the prefix cache, in turn: A B C A B C.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evenflow.bench.harness import interleave, paired_ratio, write_result
from evenflow.serving.client.messages import Submit
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.engine.build import build_engine
from evenflow.serving.models.random.random_model import LLAMA_135M, make_model

NUM_REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS, WINDOW = 4, 2500, 33, 256
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": True}
EVERY_OTHER = ["full_attention", "sliding_attention"] * (LLAMA_135M["num_hidden_layers"] // 2)
VARIANTS: dict[str, dict[str, Any]] = {
    "no layer": {**MISTRAL, "sliding_window": None},
    "every other layer": {**QWEN2, "sliding_window": WINDOW, "layer_types": EVERY_OTHER},
    "all layers": {**MISTRAL, "sliding_window": WINDOW},
}
MEASURES = ("prompt_s", "decode_step_s", "held_pages")


class Scenario:
    """One engine. A run's measure is the seconds of a decode step; the others are kept beside it."""

    def __init__(self, model: Path) -> None:
        config = EngineConfig(model=model, memory_bytes=512 << 20, enable_prefix_caching=False, max_batch_tokens=1024)
        self._engine = build_engine(config)
        self._num_runs = 0
        self.samples: dict[str, list[float]] = {name: [] for name in MEASURES}

    def run(self) -> float:
        """Prompts of random tokens, then greedy decoding."""
        self._num_runs += 1
        generator = torch.Generator().manual_seed(self._num_runs)
        params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
        for i in range(NUM_REQUESTS):
            prompt = torch.randint(3, 500, (PROMPT_TOKENS,), generator=generator).tolist()
            self._engine.submit(Submit(f"r{self._num_runs}-{i}", "c", prompt, params, None))
        started_s = time.perf_counter()
        while any(not tokens for tokens in self._outputs()):
            self._engine.step()
        prompt_s = time.perf_counter() - started_s
        steps_s, held = [], 0
        while self._engine.has_work:
            held = max(held, self._engine._scheduler.snapshot().num_kv_pages)
            started_s = time.perf_counter()
            self._engine.step()
            steps_s.append(time.perf_counter() - started_s)
        found = {"prompt_s": prompt_s, "decode_step_s": statistics.median(steps_s), "held_pages": float(held)}
        for name, value in found.items():
            self.samples[name].append(value)
        return found["decode_step_s"]

    def _outputs(self) -> list[list[int]]:
        scheduler = self._engine._scheduler
        requests = [scheduler.get(f"r{self._num_runs}-{i}") for i in range(NUM_REQUESTS)]
        return [request.output_token_ids for request in requests if request is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenarios: dict[str, Scenario] = {}
        for index, (name, fields) in enumerate(VARIANTS.items()):
            model = Path(folder) / str(index)
            make_model(model, LLAMA_135M, dtype=torch.bfloat16, max_position_embeddings=4096, **fields)
            scenarios[name] = Scenario(model)
        interleave({name: partial(Scenario.run, scenario) for name, scenario in scenarios.items()}, args.repeats)
        for scenario in scenarios.values():
            scenario.samples = {name: values[-args.repeats :] for name, values in scenario.samples.items()}
    results: dict[str, Any] = {"unit": "seconds; pages of 16 tokens of all requests together, most in a decode step"}
    full = scenarios["no layer"].samples
    for name, scenario in scenarios.items():
        results[name] = {measure: statistics.median(values) for measure, values in scenario.samples.items()}
        for measure in MEASURES:
            ratio = paired_ratio(scenario.samples[measure], full[measure])
            results[name][f"{measure} / no layer"] = round(ratio, 3)
        results[name]["samples"] = scenario.samples
        print(name, {key: value for key, value in results[name].items() if key != "samples"})
    parameters = {
        "requests": NUM_REQUESTS,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "window": WINDOW,
    }
    write_result(args.json, "windows", parameters, results)


if __name__ == "__main__":
    main()
