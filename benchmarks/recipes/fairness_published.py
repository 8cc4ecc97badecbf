r"""Our policies on a simulated server against VTC's published runs.

    python benchmarks/recipes/fairness_published.py --trace TRACE.csv \
        --json benchmarks/results/fairness-published--simulated.json

TRACE is the authors' arena trace (1,500 requests of 27 clients) as CSV; without it only the generated workloads run.
Everything is a simulation on a virtual clock: the figures do not depend on the machine, only ``cpu_s`` does. On the
trace each figure is the median over nine step-time factors from 1.06 to 1.09, because a change of 1 % in step time moves
the maximum of plain VTC by tens of percent; on a generated workload it is the median over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from evenflow.bench.harness import write_result
from evenflow.bench.replay.profiles import load_profile
from evenflow.bench.replay.replay import Replay, replay
from evenflow.bench.replay.trace import Trace
from evenflow.bench.replay.trace_files import read_trace
from evenflow.bench.replay.workload import make_workload
from evenflow.fairness.measures.fairness_measures import MEASURES, Windows, measure_run

HEAVY = ("0", "2", "5", "10")
"""The four clients with 62 % of the trace's demand."""
FIGURES = ("max_diff", "avg_diff", "diff_var", "accumulated_diff_max", "throughput_tok_s", "rejected", "jain", "ttft_mean_s")
TRACE_POLICIES = ["fcfs", "lcf", "vtc", "vtc-predict", "fair", "vtc-oracle", "rpm:5", "rpm:10", "rpm:15", "rpm:20", "rpm:30"]
TRACE_POLICIES += ["round-robin", "drr"]
WORKLOADS = {
    "overload": ["fcfs", "vtc", "vtc-predict", "fair", "vtc-oracle", "vtc-oracle:0.5"],
    "overload_multi": ["fcfs", "vtc", "vtc-predict", "fair", "vtc-oracle", "vtc-oracle:0.5"],
    "poisson_short_long": ["fcfs", "round-robin", "drr", "vtc", "vtc-predict", "fair", "vtc-oracle"],
    "burst_after_idle": ["fcfs", "lcf", "vtc-half-lift", "vtc", "vtc-predict", "fair", "hierarchy"],
    "weighted_equal_demand": ["fcfs", "vtc", "vtc-predict", "fair"],
}
TRACE_BANDS: dict[tuple[str, str], tuple[float, float]] = {
    ("fcfs", "avg_diff"): (420, 470),
    ("fcfs", "max_diff"): (720, 800),
    ("lcf", "avg_diff"): (310, 385),
    ("vtc", "avg_diff"): (205, 290),
    ("vtc-predict", "avg_diff"): (215, 265),
    ("vtc-oracle", "avg_diff"): (215, 260),
    **{(p, "throughput_tok_s"): (750, 790) for p in ("fcfs", "lcf", "vtc", "vtc-predict", "vtc-oracle")},
    ("rpm:5", "rejected"): (919 * 0.99, 919 * 1.01),
    ("rpm:10", "rejected"): (600 * 0.99, 600 * 1.01),
    ("rpm:20", "rejected"): (341 * 0.99, 341 * 1.01),
    ("rpm:30", "rejected"): (175 * 0.99, 175 * 1.01),
    ("vtc", "light_ttft_mean_s"): (0, 6),
    ("fcfs", "light_ttft_mean_s"): (40, float("inf")),
}
WORKLOAD_BANDS: dict[tuple[str, str, str], tuple[float, float]] = {
    ("overload", "vtc-oracle", "accumulated_diff_max"): (0, 1_000),
    ("overload", "vtc", "accumulated_diff_max"): (0, 20_000),
    ("overload", "fcfs", "accumulated_diff_max"): (200_000, float("inf")),
    ("poisson_short_long", "vtc", "avg_diff"): (30, 60),
    ("poisson_short_long", "vtc-predict", "avg_diff"): (0, 20),
    ("burst_after_idle", "vtc", "steady_wait_s"): (0, 8),
    ("burst_after_idle", "vtc-predict", "steady_wait_s"): (0, 8),
    ("burst_after_idle", "hierarchy", "steady_wait_s"): (0, 8),
    ("burst_after_idle", "fcfs", "steady_wait_s"): (90, float("inf")),
    ("burst_after_idle", "lcf", "steady_wait_s"): (90, float("inf")),
    ("burst_after_idle", "vtc-half-lift", "steady_wait_s"): (90, float("inf")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--server", default="paper")
    parser.add_argument(
        "--factors", type=int, default=9, metavar="N", help="how many step-time factors, evenly from 1.06 to 1.09"
    )
    parser.add_argument("--scenario", choices=tuple(WORKLOADS), help="this generated workload only")
    args = parser.parse_args()
    profile = load_profile("a10g-llama-7b")
    server = profile.server(args.server)
    factors = [1.075] if args.factors == 1 else np.linspace(1.06, 1.09, args.factors).round(5).tolist()
    results: dict[str, Any] = {}
    if args.trace is not None:
        trace = read_trace(args.trace)
        results["arena_trace"] = {
            policy: figures((trace, replay(trace, policy, server, profile.with_factor(f))) for f in factors)
            for policy in told("arena_trace", TRACE_POLICIES)
        }
    for name, policies in WORKLOADS.items():
        if args.scenario not in (None, name):
            continue
        traces = [make_workload(name, seed) for seed in range(args.seeds)]
        results[name] = {
            policy: figures((t, replay(t, policy, server, profile.step_time, seed=i)) for i, t in enumerate(traces))
            for policy in told(name, policies)
        }
    bands = {("arena_trace", *key): band for key, band in TRACE_BANDS.items()} | WORKLOAD_BANDS
    checks = []
    for (scenario, policy, figure), (low, high) in bands.items():
        if scenario in results and args.server == "paper":  # the bands are of the published settings
            value = results[scenario][policy]["paper"][figure]["median"]
            checks.append(
                {"scenario": scenario, "policy": policy, "figure": figure, "value": value, "low": low, "high": min(high, 1e9)}
                | {"is_inside": low <= value <= high}
            )
            if not low <= value <= high:
                print(f"outside: {scenario} {policy} {figure} = {value:.1f}, band {low:g}-{high:g}", file=sys.stderr)
    parameters = {"profile": profile.name, "server": args.server, "factors": factors, "seeds": args.seeds, "heavy": HEAVY}
    write_result(args.json, "fairness-published", parameters, {"bands": checks, "runs": results})


def told(scenario: str, policies: list[str]) -> Iterable[str]:
    for policy in policies:
        print(f"{scenario}: {policy}", file=sys.stderr, flush=True)
        yield policy


def figures(runs: Iterable[tuple[Trace, Replay]]) -> dict[str, Any]:
    """Median, least and greatest of every figure, by measure."""
    samples: dict[str, dict[str, list[float]]] = {measure: {} for measure in MEASURES}
    cpu_s, shares = [], {}
    for trace, done in runs:
        cpu_s.append(done.cpu_s)
        for measure in MEASURES:
            fairness = measure_run(done.log, measure, Windows(trace.horizon_s))
            values = {name: getattr(fairness, name) for name in FIGURES}
            values |= waits(trace, done)
            for name, value in values.items():
                samples[measure].setdefault(name, []).append(value)
            if len(trace.clients) <= 8:
                shares = {client: account.share for client, account in fairness.per_client.items()}
    summary: dict[str, Any] = {
        measure: {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)} for name, values in kept.items()
        }
        for measure, kept in samples.items()
    }
    return {**summary, "shares_of_the_last_run": shares, "cpu_s": statistics.median(cpu_s)}


def waits(trace: Trace, done: Replay) -> dict[str, float]:
    """Mean time to first token of those whom a fair server protects."""
    served = [r for r in done.log.requests if r.first_token_s is not None]

    def mean(chosen: list[Any]) -> float:
        return float(np.mean([r.first_token_s - r.arrival_s for r in chosen])) if chosen else 0.0

    if len(trace.clients) == 27:
        return {
            "light_ttft_mean_s": mean([r for r in served if r.client_id not in HEAVY]),
            "heavy_ttft_mean_s": mean([r for r in served if r.client_id in HEAVY]),
        }
    if trace.name == "burst_after_idle":
        return {"steady_wait_s": mean([r for r in served if r.client_id == "0" and r.arrival_s > 600])}
    return {}


if __name__ == "__main__":
    main()
