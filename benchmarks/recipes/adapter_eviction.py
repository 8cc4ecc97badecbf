"""Which idle adapter should go: eviction orders under power-law popularity and mixed ranks, with and without prefetch.

    python benchmarks/recipes/adapter_eviction.py --load benchmarks/results/adapter_store--MACHINE.json \
        --json benchmarks/results/adapter_eviction--MACHINE.json

On the virtual clock: the shipped scheduler, residency and arena with a 7B model's sizes (8 MiB pages, rank-8 adapters of
16.8 MB on q, k, v and o) and the step times of the profile a10g-llama-7b. A load takes what the result file of
adapter_store.py measured on this machine per byte and per load; a step waits for the loads it needs, and a prefetch takes
what of its time the step does not hide. 300 adapters of ranks 8, 16, 32 and 64, ranks independent of popularity;
k-th most popular in proportion to k^-alpha; Poisson arrivals. Deterministic for a seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from evenflow.bench.harness import write_result
from evenflow.bench.replay.profiles import a10g_llama_7b
from evenflow.fairness import ClientQueues, create_policy
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.plan import AdapterLoad, StepPlan
from evenflow.serving.core.request import AdapterDigest, ClientId, Request, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.engine.simulated import StepTime, simulate
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.eviction import CostAware, EvictionOrder, LeastRecentlyUsed
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler import BudgetedPrefetch, Scheduler, SchedulerLimits

PAGE_TOKENS, POOL_PAGES, NUM_ADAPTERS, NUM_REQUESTS = 16, 900, 300, 2500
PAGE_BYTES = 16 * 2 * 32 * 4096 * 2
ROW_BYTES = 2 * 4 * 32 * 4096 * 2
"""A and B of one rank of q, k, v and o, all layers."""
RANKS = (8, 16, 32, 64)
ALPHAS, RATES = (0.6, 1.0), (4.0, 10.0)
ORDERS: dict[str, Callable[[], EvictionOrder]] = {
    "lru": LeastRecentlyUsed,
    "cost-aware": CostAware,
    "cost-aware, half life 100": lambda: CostAware(half_life=100),
    "cost-aware, half life 2000": lambda: CostAware(half_life=2000),
    "cost-aware, keeps large (+1)": lambda: CostAware(size_exponent=1.0),
    "cost-aware, keeps large (+0.5)": lambda: CostAware(size_exponent=0.5),
    "cost-aware, keeps small (-1)": lambda: CostAware(size_exponent=-1.0),
}


def records(seed: int) -> list[AdapterRecord]:
    """Adapters, the most popular first."""
    ranks = np.random.default_rng(seed).permutation(np.resize(RANKS, NUM_ADAPTERS))
    sizes = [int(rank) * ROW_BYTES for rank in ranks]
    return [
        AdapterRecord(AdapterDigest(f"a{i}"), AdapterSignature(()), -(-size // PAGE_BYTES), size)
        for i, size in enumerate(sizes)
    ]


def requests(seed: int, alpha: float, rate: float) -> list[Request]:
    """Poisson arrivals, popularity by a power law, 32 to 256 tokens in and 16 to 128 out, four clients."""
    rng = np.random.default_rng([seed, 1])
    popularity = np.arange(1, NUM_ADAPTERS + 1, dtype=float) ** -alpha
    chosen = rng.choice(NUM_ADAPTERS, NUM_REQUESTS, p=popularity / popularity.sum())
    arrivals = np.cumsum(rng.exponential(1 / rate, NUM_REQUESTS))
    inputs, outputs = rng.integers(32, 257, NUM_REQUESTS), rng.integers(16, 129, NUM_REQUESTS)
    return [
        Request(
            RequestId(str(i)),
            ClientId(f"c{i % 4}"),
            [0] * int(inputs[i]),
            GREEDY,
            float(arrivals[i]),
            AdapterDigest(f"a{chosen[i]}"),
            max_output_tokens=int(outputs[i]),
            known_output_tokens=int(outputs[i]),
        )
        for i in range(NUM_REQUESTS)
    ]


def with_loads(compute: StepTime, bytes_per_s: float, fixed_s: float) -> StepTime:
    """Step times with loads in front and prefetches beside."""

    def seconds(load: AdapterLoad) -> float:
        return (load.stop - load.first) * PAGE_BYTES / bytes_per_s + (fixed_s if load.first == 0 else 0.0)

    def step_time(plan: StepPlan) -> float:
        needed = sum(seconds(load) for load in plan.loads if not load.is_prefetch)
        beside = sum(seconds(load) for load in plan.loads if load.is_prefetch)
        return max(needed + compute(plan), beside)

    return step_time


def run(
    order: EvictionOrder, prefetch_pages: int, seed: int, alpha: float, rate: float, step_time: StepTime
) -> dict[str, float]:
    """Serve the workload to its end."""
    queues, arena = ClientQueues(), Arena(POOL_PAGES)
    by_digest = {record.digest: record for record in records(seed)}
    residency = Residency(arena, by_digest.__getitem__, order=order)
    prefetch = None
    if prefetch_pages:
        prefetch = BudgetedPrefetch(step_pages=prefetch_pages, held_pages=POOL_PAGES // 4, page_tokens=PAGE_TOKENS)
    scheduler = Scheduler(
        policy=create_policy("vtc", queues=queues),
        queues=queues,
        arena=arena,
        residency=residency,
        limits=SchedulerLimits(max_num_seqs=32, max_batch_tokens=512, max_model_len=2048, page_tokens=PAGE_TOKENS),
        prefetch=prefetch,
    )
    workload = requests(seed, alpha, rate)
    result = simulate(scheduler, workload, step_time)
    waits_s = np.array([r.first_token_s - r.arrival_s for r in workload if r.first_token_s is not None])
    snapshot = scheduler.snapshot()
    return {
        "hit_rate": 1 - residency.num_loads / NUM_REQUESTS,
        "loaded_gb": residency.loaded_bytes / 1e9,
        "ttft_mean_s": float(waits_s.mean()),
        "ttft_p50_s": float(np.quantile(waits_s, 0.5)),
        "ttft_p90_s": float(np.quantile(waits_s, 0.9)),
        "prefetches": residency.num_prefetches,
        "wasted_prefetches": residency.num_wasted_prefetches,
        "preemptions": snapshot.num_preemptions,
        "total_s": result.total_s,
    }


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=Path, required=True, help="result of adapter_store.py on this machine")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    load = json.loads(options.load.read_text())["results"]["load"]
    without_adapters = replace(a10g_llama_7b().step_time, adapter_bytes=0)
    step_time = with_loads(without_adapters, load["bytes_per_s"], load["fixed_s"])
    step_pages = max(1, int(0.03 * load["bytes_per_s"] / PAGE_BYTES))
    cases = [(name, 0) for name in ORDERS] + [(name, step_pages) for name in ("lru", "cost-aware")]
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for alpha in ALPHAS:
        for rate in RATES:
            workload = f"alpha {alpha}, {rate} requests/s"
            print(f"{workload:44}{'hits':>7}{'GB':>8}{'TTFT mean':>11}{'p90':>8}{'total s':>9}{'pref.':>7}{'wasted':>8}")
            for name, pages in cases:
                runs = [run(ORDERS[name](), pages, seed, alpha, rate, step_time) for seed in range(options.seeds)]
                label = name + (", prefetch" if pages else "")
                results.setdefault(workload, {})[label] = runs
                mean = {key: float(np.mean([r[key] for r in runs])) for key in runs[0]}
                print(
                    f"  {label:42}{mean['hit_rate']:7.1%}{mean['loaded_gb']:8.1f}{mean['ttft_mean_s']:11.3f}"
                    f"{mean['ttft_p90_s']:8.3f}{mean['total_s']:9.1f}{mean['prefetches']:7.0f}{mean['wasted_prefetches']:8.0f}",
                    flush=True,
                )
    parameters = {
        "seeds": options.seeds, "num_adapters": NUM_ADAPTERS, "num_requests": NUM_REQUESTS, "ranks": RANKS,
        "pool_pages": POOL_PAGES, "page_bytes": PAGE_BYTES, "load_bytes_per_s": load["bytes_per_s"],
        "load_fixed_s": load["fixed_s"], "prefetch_pages_per_step": step_pages, "step_times": "a10g-llama-7b",
    }  # fmt: skip
    if options.json:
        write_result(options.json, "adapter_eviction", parameters, results)


if __name__ == "__main__":
    main()
