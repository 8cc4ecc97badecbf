"""Offline throughput: ours against transformers + peft and against the matrix products alone.

    python benchmarks/recipes/throughput.py --json benchmarks/results/throughput--MACHINE.json

A 135 M random Llama (12 layers, hidden 1024, 16/4 heads, intermediate 2816, bf16), 16 requests of 64 + 48
tokens, greedy, all at once. Variants run in turn: A B C A B C. Figures are output tokens per second.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evenflow import LLM, SamplingParams
from evenflow.bench.harness import JsonProcess, interleave, paired_ratio, summary, write_result
from evenflow.serving.client.environment import engine_environment
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.shape import MODULES
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import LLAMA_135M, make_model

NUM_REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 16, 64, 48
QV = ("q_proj", "v_proj")
ADAPTERS = {
    "one": (8, QV),
    "m0": (4, QV), "m1": (8, MODULES), "m2": (16, QV), "m3": (32, MODULES),
    "m4": (8, QV), "m5": (4, MODULES), "m6": (32, QV), "m7": (16, MODULES),
}  # fmt: skip
MIXED = [f"m{i % 8}" for i in range(NUM_REQUESTS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", default="transformers_peft,matmul_floor", help="comma separated; empty: none")
    args = parser.parse_args()
    peers = [name for name in args.peers.split(",") if name]
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), args.json, args.repeats, peers)


def run(folder: Path, result: Path, repeats: int, peers: list[str]) -> None:
    import torch

    model = folder / "model"
    config = make_model(model, LLAMA_135M, dtype=torch.bfloat16)
    for seed, (name, (rank, modules)) in enumerate(ADAPTERS.items()):
        make_adapter(folder / name, config, lora_rank=rank, target_modules=modules, seed=seed)
    adapter_dirs = {name: str(folder / name) for name in ADAPTERS}
    generator = np.random.default_rng(0)
    prompts = generator.integers(1, config.shape.vocab_size, (NUM_REQUESTS, PROMPT_TOKENS)).tolist()
    sampling = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    total = NUM_REQUESTS * OUTPUT_TOKENS
    llm = LLM(model, adapter_dirs, memory="1GiB", max_num_seqs=NUM_REQUESTS, enable_prefix_caching=False)
    processes: list[JsonProcess] = []

    def ours(adapters: list[str | None]) -> Callable[[], float]:
        def measure() -> float:
            started_s = time.perf_counter()
            generations = llm.generate(prompts, sampling, adapters=adapters)
            seconds = time.perf_counter() - started_s
            assert sum(len(g.token_ids) for g in generations) == total
            return total / seconds

        return measure

    def peft(process: JsonProcess, adapters: list[str | None]) -> Callable[[], float]:
        question = {"prompts": prompts, "max_tokens": OUTPUT_TOKENS, "adapters": adapters}
        return lambda: total / process.ask(question)["seconds"]

    base: list[str | None] = [None] * NUM_REQUESTS
    one: list[str | None] = ["one"] * NUM_REQUESTS
    mixed: list[str | None] = list(MIXED)
    variants = {"ours base": ours(base), "ours one r8": ours(one), "ours 8 mixed": ours(mixed)}
    if "matmul_floor" in peers:
        environment = engine_environment(EngineConfig(model=model), os.environ)
        floor = JsonProcess("evenflow.bench.peers.matmul_floor", str(model), environment=environment)
        processes.append(floor)
        rows = [512] * (NUM_REQUESTS * PROMPT_TOKENS // 512) + [NUM_REQUESTS] * (OUTPUT_TOKENS - 1)
        variants["matrix products alone"] = lambda: total / floor.ask({"rows": rows})["seconds"]
    if "transformers_peft" in peers:
        specs = [f"{name}={path}" for name, path in adapter_dirs.items()]
        peer = JsonProcess("evenflow.bench.peers.transformers_peft", str(model), *specs)
        processes.append(peer)
        variants["peft base"] = peft(peer, base)
        variants["peft one r8"] = peft(peer, one)
        variants["peft 8 mixed"] = peft(peer, mixed)
    try:
        samples = interleave(variants, repeats)
    finally:
        llm.close()
        for process in processes:
            process.close()
    pairs = [
        ("ours base", "peft base"), ("ours base", "matrix products alone"), ("ours one r8", "ours base"),
        ("ours 8 mixed", "ours base"), ("ours one r8", "peft one r8"), ("ours 8 mixed", "peft 8 mixed"),
    ]  # fmt: skip
    ratios = {f"{a} / {b}": round(paired_ratio(samples[a], samples[b]), 3) for a, b in pairs if a in samples and b in samples}
    results = {
        "unit": "output tokens per second",
        "summary": {name: summary(values) for name, values in samples.items()},
        "ratios": ratios,
        "samples": samples,
    }
    parameters = {
        "model": dict(LLAMA_135M), "dtype": "bfloat16", "num_requests": NUM_REQUESTS, "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS, "adapters": {name: [rank, list(m)] for name, (rank, m) in ADAPTERS.items()},
        "repeats": repeats,
    }  # fmt: skip
    write_result(result, "throughput", parameters, results)
    for name, values in samples.items():
        print(f"{name:24s} {summary(values)['median']:8.1f} tok/s")
    for name, ratio in ratios.items():
        print(f"{name:40s} {ratio:6.2f}")


if __name__ == "__main__":
    main()
