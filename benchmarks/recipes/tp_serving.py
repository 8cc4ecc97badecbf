"""Serving over two tensor-parallel ranks on one machine: tokens/s, bytes by site, and what compressing the sums costs.

    python benchmarks/recipes/tp_serving.py --json benchmarks/results/tp_serving--MACHINE.json

A 135 M random Llama (bf16), 16 requests of 64 + 32 tokens, greedy, all at once, on the base model and with eight adapters
of ranks 4 to 32. Variants run in turn (A B C A B C); two of them have the same two cores: one process with two threads, or
two ranks with one each. Bytes are what rank 0 has sent, from its ledger, beside what was planned and, for adapters, what
the paper's formula says. Errors are those of log-probabilities, the 20 likeliest tokens of every prompt position, on the
embedded trained model in fp32, against one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evenflow import LLM, SamplingParams
from evenflow.bench.harness import interleave, paired_ratio, summary, write_result
from evenflow.comm.collectives.links import Link
from evenflow.comm.ledger import Kind
from evenflow.demo.assets import model_path
from evenflow.mcbench.predict.calibration import calibrate
from evenflow.serving.core.plan import PlannedSequence, SampleSpec, StepPlan
from evenflow.serving.core.request import RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.core.shape import MODULES
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import LLAMA_135M, make_model
from evenflow.serving.ranks.rank_messages import encode_step, plan_of, step_decoder

NUM_REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS, TOP = 16, 64, 32, 20
QV = ("q_proj", "v_proj")
ADAPTERS = {"m0": (4, QV), "m1": (8, MODULES), "m2": (16, QV), "m3": (32, MODULES), "m4": (8, QV), "m5": (4, MODULES)}
MIXED = [f"m{i % len(ADAPTERS)}" for i in range(NUM_REQUESTS)]
COMPRESSORS = ("none", "bf16", "int8-g32", "int8-g32/one-shot", "int6-g32", "int4-g32", "fp8-g128", "mxfp4", "hadamard-int4")
TEXT = (
    "The harbour of Tidewick wakes before the sun. Boats come in with the tide, and the fishmonger counts crates by lantern "
    "light while the baker opens the shutters. Ask anyone on the quay and they will tell you what the weather will do. "
) * 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    machine = calibrate(Link.parse("unlimited"), ("int8-g32",), print)
    link = {
        f"{kind.value} {dtype}": {"fixed_us": 1e6 * curve.fixed_s, "gbyte_per_s": 1e-9 / curve.unit_s}
        for kind, dtype in ((Kind.ALL_REDUCE, "float32"), (Kind.ALL_REDUCE, "bfloat16"), (Kind.ALL_GATHER, "uint8"))
        if (curve := machine.operation(kind, dtype)).unit_s
    }
    results: dict[str, object] = {
        "link": link,
        "plan": plan_cost(),
    }
    print(results)
    with tempfile.TemporaryDirectory() as folder:
        results |= speed(Path(folder), args.repeats)
    results["compressors"] = errors()
    parameters = {"requests": NUM_REQUESTS, "prompt": PROMPT_TOKENS, "output": OUTPUT_TOKENS, "adapters": ADAPTERS}
    write_result(args.json, "tp_serving", parameters | {"repeats": args.repeats}, results)


def plan_cost() -> dict[str, float]:
    """Microseconds to encode, and on the other side decode, the plan of a decode step with 1,000 tokens of context each."""
    sample = SampleSpec(GREEDY, [1] * 900, [1] * 100, 0)
    sequences = tuple(
        PlannedSequence(RequestId(f"r{i}"), [5], 1000, list(range(i, i + 63)), i, sample) for i in range(NUM_REQUESTS)
    )
    plan = StepPlan(7, sequences)

    def median_us(run: Callable[[], object]) -> float:
        times = []
        for _ in range(200):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return 1e6 * statistics.median(times)

    message = encode_step(plan)
    return {
        "bytes": len(message),
        "encode_us": median_us(lambda: encode_step(plan)),
        "decode_us": median_us(lambda: plan_of(step_decoder.decode(message))),
    }


def speed(folder: Path, repeats: int) -> dict[str, object]:
    """Tokens per second of every variant, and the bytes of one decode step."""
    import torch

    config = make_model(folder / "model", LLAMA_135M, dtype=torch.bfloat16)
    adapters = {
        name: make_adapter(folder / name, config, lora_rank=rank, target_modules=modules, seed=seed)
        for seed, (name, (rank, modules)) in enumerate(ADAPTERS.items())
    }
    prompts = np.random.default_rng(0).integers(1, config.shape.vocab_size, (NUM_REQUESTS, PROMPT_TOKENS)).tolist()
    sampling = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    settings: dict[str, dict[str, object]] = {
        "1 rank, 1 thread": {"num_threads": 1},
        "1 rank, 2 threads": {"num_threads": 2},
        "2 ranks, replicated": {"tensor_parallel": 2, "num_threads": 2, "lora_sharding": "replicated"},
        "2 ranks, sharded": {"tensor_parallel": 2, "num_threads": 2, "lora_sharding": "sharded"},
        "2 ranks, replicated, int8": {
            "tensor_parallel": 2,
            "num_threads": 2,
            "lora_sharding": "replicated",
            "compress": "int8-g32",
        },
    }
    engines = {
        name: LLM(folder / "model", adapters, memory="512MiB", enable_prefix_caching=False, **options)
        for name, options in settings.items()
    }

    def run(name: str, names: list[str | None]) -> float:
        started_s = time.perf_counter()
        generations = engines[name].generate(prompts, sampling, adapters=names)
        assert sum(len(g.token_ids) for g in generations) == NUM_REQUESTS * OUTPUT_TOKENS
        return NUM_REQUESTS * OUTPUT_TOKENS / (time.perf_counter() - started_s)

    loads: dict[str, list[str | None]] = {"base": [None] * NUM_REQUESTS, "mixed": list(MIXED)}
    try:
        variants = {
            f"{name}, {kind}": lambda name=name, names=names: run(name, names)
            for name in engines
            for kind, names in loads.items()
        }
        samples = interleave(variants, repeats)
        throughput: dict[str, object] = {}
        for name, values in samples.items():
            one = samples["1 rank, 2 threads, " + name.rsplit(", ", 1)[1]]
            numbers = summary(values) | {"over_one_process": paired_ratio(values, one), "samples": values}
            throughput[name] = numbers
            print(f"{name:40} {numbers['median']:8.1f} tokens/s  {numbers['over_one_process']:5.2f} x one process")
        sent = {name: bytes_per_run(llm, prompts, sampling) for name, llm in engines.items() if name.startswith("2")}
    finally:
        for llm in engines.values():
            llm.close()
    return {"tokens_per_s": throughput, "bytes_of_one_run_mixed": sent, "formula": formula(config.shape.num_layers)}


def bytes_per_run(llm: LLM, prompts: list[list[int]], sampling: SamplingParams) -> dict[str, object]:
    """What rank 0 sends while the sixteen mixed requests run once, by site."""
    before = settled(llm)
    llm.generate(prompts, sampling, adapters=list(MIXED))
    after = settled(llm)
    return {
        site: {
            "exchanges": wire.exchanges - (before[site].exchanges if site in before else 0),
            "planned": wire.planned_bytes - (before[site].planned_bytes if site in before else 0.0),
            "counted": wire.sent_bytes - (before[site].sent_bytes if site in before else 0.0),
        }
        for site, wire in after.items()
    }


def settled(llm: LLM) -> dict:
    """The books once nothing runs: the snapshot after the last step."""
    llm.list_adapters()
    time.sleep(0.6)
    llm.list_adapters()
    return dict(llm.stats.wire)


def formula(num_layers: int) -> dict[str, float]:
    """Bytes that the paper's formula gives for the adapters of such a run: 5 and 4 (N-1)/N times the sum over rows of r."""
    rows = PROMPT_TOKENS + OUTPUT_TOKENS - 1
    totals = {"attention": 0.0, "mlp": 0.0}
    for name in MIXED:
        rank, modules = ADAPTERS[name]
        padded = -(-rank // 2) * 2
        blocks = (("attention", (*QV, "k_proj"), "o_proj"), ("mlp", ("gate_proj", "up_proj"), "down_proj"))
        for block, gathered, summed in blocks:
            times = sum(module in modules for module in gathered) + 2 * (summed in modules)
            totals[block] += 4 * rows * num_layers * times * padded / 2
    return totals


def errors() -> dict[str, object]:
    """Log-probabilities over two ranks with each compressor against one process, and bytes per row and layer."""
    found: dict[str, object] = {}
    with LLM(model_path(), dtype="float32", memory="256MiB") as llm:
        exact = scores(llm)
    for spec in COMPRESSORS:
        with LLM(model_path(), dtype="float32", memory="256MiB", tensor_parallel=2, compress=spec) as llm:
            compressed = scores(llm)
            wire = settled(llm)
        differences = [abs(compressed[key] - value) for key, value in exact.items() if key in compressed]
        dense = wire["embedding"].sent_bytes / wire["embedding"].exchanges
        share = wire["o"].sent_bytes / wire["o"].exchanges / dense
        found[spec] = {
            "median_error": statistics.median(differences),
            "p99_error": sorted(differences)[int(0.99 * len(differences))],
            "max_error": max(differences),
            "compared": len(differences),
            "share_of_fp32_bytes": share,
        }
        print(spec, found[spec])
    return found


def scores(llm: LLM) -> dict[tuple[int, int], float]:
    """(position, token id) -> log-probability of the prompt's likeliest tokens."""
    generation = llm.generate([TEXT], SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=TOP))[0]
    assert generation.prompt_logprobs is not None
    return {
        (position, token_id): logprob
        for position, entry in enumerate(generation.prompt_logprobs)
        if entry is not None
        for token_id, _, logprob in entry.top
    }


if __name__ == "__main__":
    main()
