"""How much room admission should leave for outputs of unknown length: throughput against recomputation.

    python benchmarks/recipes/admission.py --hardware a10g-llama-7b-simulated [--seeds 1]

On the virtual clock: the shipped scheduler with chunked prefill and pages of 16 tokens, step times of the profile
a10g-llama-7b, policy VTC. ``known`` is the exact test with true lengths, which no server has. Deterministic for a
seed. Writes benchmarks/results/admission--<hardware>.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evenflow.base.errors import AdapterNotFound
from evenflow.bench.harness import write_result
from evenflow.bench.replay.profiles import a10g_llama_7b
from evenflow.bench.replay.workload import make_workload
from evenflow.fairness import ClientQueues, create_policy
from evenflow.serving.core.adapter import AdapterRecord
from evenflow.serving.core.request import AdapterDigest, ClientId, Request, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.engine.simulated import simulate
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler import Admission, KnownPeak, PredictAndPreempt, Scheduler, SchedulerLimits

WORKLOADS = ("arena_like", "poisson_short_long", "poisson_short_long_2")
SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
POOL_TOKENS, PAGE_TOKENS, MAX_OUTPUT = 10_000, 16, 1024


def no_adapters(digest: AdapterDigest) -> AdapterRecord:
    """These workloads have none."""
    raise AdapterNotFound(f"no adapter {digest}")


def run(workload: str, seed: int, admission: Admission) -> dict[str, float]:
    """Serve the workload to its end."""
    queues, arena = ClientQueues(), Arena(POOL_TOKENS // PAGE_TOKENS)
    trace = make_workload(workload, seed)
    scheduler = Scheduler(
        policy=create_policy("vtc", queues=queues),
        queues=queues,
        arena=arena,
        residency=Residency(arena, no_adapters),
        limits=SchedulerLimits(max_num_seqs=256, max_batch_tokens=512, max_model_len=8192, page_tokens=PAGE_TOKENS),
        admission=admission,
    )
    requests = [
        Request(
            RequestId(str(i)),
            ClientId(row.client),
            [0] * row.input_len,
            GREEDY,
            row.arrival_s,
            max_output_tokens=MAX_OUTPUT,
            known_output_tokens=row.output_len,
        )
        for i, row in enumerate(trace)
    ]
    result = simulate(scheduler, requests, a10g_llama_7b().step_time)
    snapshot = scheduler.snapshot()
    num_tokens = snapshot.prompt_tokens + snapshot.completion_tokens
    waits_s = sorted(r.first_token_s - r.arrival_s for r in requests if r.first_token_s is not None)
    return {
        "throughput_tok_s": num_tokens / result.total_s,
        "num_preemptions": snapshot.num_preemptions,
        "recomputed_share": snapshot.recomputed_tokens / num_tokens,
        "ttft_mean_s": sum(waits_s) / len(waits_s),
        "num_requests": len(requests),
    }


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="a10g-llama-7b-simulated")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for workload in WORKLOADS:
        print(f"{workload:24}{'tok/s':>10}{'preempted':>11}{'recomputed':>12}{'TTFT s':>9}")
        for name in ("known", *SHARES):
            runs = []
            for seed in range(options.seeds):
                admission = KnownPeak() if isinstance(name, str) else PredictAndPreempt(growth_share=name)
                runs.append(run(workload, seed, admission))
                numbers = runs[-1]
                print(
                    f"  {name!s:22}{numbers['throughput_tok_s']:10.1f}{numbers['num_preemptions']:11.0f}"
                    f"{numbers['recomputed_share']:12.1%}{numbers['ttft_mean_s']:9.2f}",
                    flush=True,
                )
            results.setdefault(workload, {})[str(name)] = runs
    parameters = {"seeds": options.seeds, "pool_tokens": POOL_TOKENS, "page_tokens": PAGE_TOKENS, "max_output": MAX_OUTPUT}
    write_result(options.out / f"admission--{options.hardware}.json", "admission", parameters, results)


if __name__ == "__main__":
    main()
