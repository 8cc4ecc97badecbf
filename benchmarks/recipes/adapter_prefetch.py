"""Prefetch on this machine: many cold adapters behind a full batch, loaded when they start or beside the steps before.

    python benchmarks/recipes/adapter_prefetch.py --json benchmarks/results/adapter_prefetch--MACHINE.json

A 135 M random Llama in bf16; every request has an adapter of its own (all modules, ranks 64, 32, 16 and 8 in turn) and the
arena holds a part of them. All requests at once, 8 at a time, 64 tokens in and 16 out. Variants run in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evenflow import LLM, SamplingParams
from evenflow.bench.harness import interleave, paired_ratio, summary, write_result
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import LLAMA_135M, make_model

NUM_REQUESTS, NUM_RUNNING, PROMPT_TOKENS, OUTPUT_TOKENS = 48, 8, 64, 16
RANKS = (64, 32, 16, 8)
BUDGETS = {"no prefetch": 0, "4 MiB per step": 4 << 20, "16 MiB per step": 16 << 20, "64 MiB per step": 64 << 20}


def main() -> None:
    """Measure and write."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        config = make_model(root / "model", LLAMA_135M, dtype=torch.bfloat16)
        folders = {
            f"a{i}": make_adapter(root / f"a{i}", config, lora_rank=RANKS[i % 4], seed=i, dtype=torch.bfloat16)
            for i in range(NUM_REQUESTS)
        }
        names = list(folders)
        prompts = np.random.default_rng(0).integers(1, config.shape.vocab_size, (NUM_REQUESTS, PROMPT_TOKENS)).tolist()
        sampling = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
        engines = {
            name: LLM(
                root / "model",
                folders,
                memory="192MiB",
                max_num_seqs=NUM_RUNNING,
                max_model_len=256,
                enable_prefix_caching=False,
                adapter_cache=root / "cache",
                adapter_prefetch_bytes=budget,
            )
            for name, budget in BUDGETS.items()
        }
        ttft: dict[str, list[float]] = {name: [] for name in BUDGETS}
        tokens: dict[str, list[list[int]]] = {}

        def measure(name: str) -> Callable[[], float]:
            def once() -> float:
                began = time.perf_counter()
                answers = engines[name].generate(prompts, sampling, adapters=names, clients=names)
                seconds = time.perf_counter() - began
                tokens[name] = [answer.token_ids for answer in answers]
                usages = [answer.usage for answer in answers if answer.usage is not None]
                ttft[name].append(float(np.mean([usage.queue_s + usage.prefill_s for usage in usages])))
                return NUM_REQUESTS * OUTPUT_TOKENS / seconds

            return once

        try:
            samples = interleave({name: measure(name) for name in BUDGETS}, options.repeats)
            stats = {name: engine.stats for name, engine in engines.items()}
        finally:
            for engine in engines.values():
                engine.close()
        assert all(got == tokens["no prefetch"] for got in tokens.values()), "prefetch changed an answer"
    first = next(iter(BUDGETS))
    results = {
        "unit": "output tokens per second",
        "summary": {name: summary(values) for name, values in samples.items()},
        "ratio to no prefetch": {name: paired_ratio(values, samples[first]) for name, values in samples.items()},
        "ttft_mean_s": {name: summary(values[1:]) for name, values in ttft.items()},
        "counts": {
            name: {
                "loads": s.num_adapter_loads, "prefetches": s.num_adapter_prefetches, "wasted": s.num_wasted_prefetches,
                "evictions": s.num_adapter_evictions, "loaded_bytes": s.loaded_adapter_bytes, "preemptions": s.num_preemptions,
            }
            for name, s in stats.items()
        },
        "samples": samples,
    }  # fmt: skip
    for name, values in samples.items():
        ratio = results["ratio to no prefetch"][name]  # type: ignore[index]
        print(f"{name:20} {summary(values)['median']:8.1f} tok/s  x{ratio:.3f}  TTFT {summary(ttft[name][1:])['median']:.3f} s")
    print(results["counts"])
    parameters = {
        "model": dict(LLAMA_135M), "dtype": "bfloat16", "num_requests": NUM_REQUESTS, "num_running": NUM_RUNNING,
        "prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS, "ranks": RANKS, "memory": "192MiB",
        "repeats": options.repeats,
    }  # fmt: skip
    if options.json:
        write_result(options.json, "adapter_prefetch", parameters, results)


if __name__ == "__main__":
    main()
