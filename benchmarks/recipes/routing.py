"""Routers on simulated fleets of 2 to 64 engines, and one fairness over 64 engines and 100,000 clients.

    python benchmarks/recipes/routing.py [--quick]

Four results: ``routing-popular`` and ``routing-hot`` (hits, loads, first tokens and throughput by router and number of
engines, on S-LoRA's workload with popular and rare adapters, and with one adapter that alone asks for more than an engine
gives), ``routing-fairness-small`` and ``-large`` (shares of weight classes with shared and with local counters). Virtual
time: the same on any machine. The large one takes some five minutes of a core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from evenflow.bench.harness import write_result
from evenflow.bench.replay.fleet import FleetRun, simulate_fleet
from evenflow.bench.replay.fleet_comparison import compare_routers, local_policies, service_by_weight, shared_policies
from evenflow.bench.replay.profiles import ServerSettings, a10g_llama_7b
from evenflow.bench.replay.slora_workload import slora_workload
from evenflow.bench.replay.trace import Trace
from evenflow.bench.replay.trace_requests import requests_of
from evenflow.fairness import WeightedTokens
from evenflow.routing.router import ReplicaView, RoutedRequest
from evenflow.serving.engine.simulated import LinearStepTime

RESULTS = Path(__file__).parents[1] / "results"
ROUTERS = ("affinity", "least-loaded", "multiplexed", "random")
REPLICAS = (2, 4, 8, 16, 64)
RATE_PER_REPLICA = 1.6
"""Requests a second; a profile's engine serves about 1.8 of them."""
DURATION_S = 45.0
ADAPTERS_PER_REPLICA = 50
SYNC_S = 0.1
WEIGHTS = (1.0, 2.0)
SPREADS = (1, 2)
SMALL, LARGE = (8, 6_000, 7), (64, 100_000, 7)
"""Engines, clients, and requests of a client of weight 1."""


class Where:
    """A router that is told where: the adapter at7 is on engine 7."""

    def choose(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """That one."""
        return replicas[int((request.adapter or "at0").removeprefix("at"))]


def popular_and_rare(num_replicas: int) -> Trace:
    """S-LoRA's workload, as many adapters and requests for each engine, a fifth of the adapters get most requests."""
    return slora_workload(
        num_adapters=ADAPTERS_PER_REPLICA * num_replicas,
        rate=RATE_PER_REPLICA * num_replicas,
        alpha=0.4,
        cv=1.0,
        duration_s=DURATION_S,
        input_range=(8, 257),
        output_range=(8, 257),
        seed=42,
    )


def one_hot(num_replicas: int) -> Trace:
    """The same, and a third of all requests ask for one adapter: more than an engine can serve, from four engines on."""
    trace = popular_and_rare(num_replicas)
    rng = np.random.default_rng(7)
    chosen = np.where(rng.random(len(trace)) < 1 / 3, 0, trace.adapter_index)
    return replace(trace, name="one_hot", adapter_index=chosen, client_index=np.zeros(len(trace), np.int64), clients=("0",))


WORKLOADS = {"popular": popular_and_rare, "hot": one_hot}


def routing(name: str, replicas: tuple[int, ...]) -> list[dict[str, object]]:
    """Every router on one workload."""
    profile = a10g_llama_7b()
    server = profile.server("chunked", None)
    found = []
    for count in replicas:
        trace = WORKLOADS[name](count)
        for result in compare_routers(trace, ROUTERS, ["vtc-shared"], [count], server, profile.step_time):
            print(result, flush=True)
            found.append(asdict(result))
    return found


def fairness(num_replicas: int, num_clients: int, requests_per_weight: int, variants: Sequence[str]) -> dict[str, object]:
    """All clients backlogged from the start, with requests by weight, up to six tenths of the work; then nobody has run out.

    A client's requests go to one or two engines, whatever its weight: as many as have what it asks for. An engine by
    itself cannot see how much its clients have had elsewhere. Measured is the service of each weight class in the later part:
    at first all clients of a class are served in step, which the lengths of their requests undo.
    """
    rng = np.random.default_rng(3)
    weights = {str(i): WEIGHTS[i % len(WEIGHTS)] for i in range(num_clients)}
    counts = [round(requests_per_weight * weight) for weight in weights.values()]
    own = rng.permutation(np.repeat(np.arange(num_clients), counts))
    spread = np.array(SPREADS)[np.arange(num_clients) // len(WEIGHTS) % len(SPREADS)]
    places = np.array([rng.choice(num_replicas, max(SPREADS), replace=False) for _ in range(num_clients)])
    server = ServerSettings("small", 16_384, 16, 64, 1024, False)
    step_time = LinearStepTime(0.05, 0.00002)
    outputs = rng.integers(1, 5, len(own), endpoint=True)
    work_s = step_time.base_s * float(outputs.sum()) / num_replicas / server.max_num_seqs
    trace = Trace(
        name="backlogged_100k",
        clients=tuple(weights),
        arrival_s=np.zeros(len(own)),
        client_index=own,
        adapters=tuple(f"at{i}" for i in range(num_replicas)),
        adapter_index=places[own, rng.integers(0, 1 << 30, len(own)) % spread[own]],
        input_len=rng.integers(1, 15, len(own), endpoint=True),
        output_len=outputs,
        horizon_s=1.0,
    )
    found: dict[str, object] = {}
    for name in variants:
        started_s = time.process_time()
        make = shared_policies(weights, sync_s=SYNC_S) if name == "shared" else local_policies("vtc-predict", weights, None, 0)
        run = simulate_fleet(
            requests_of(trace, 64, True),
            num_replicas,
            Where(),
            make,
            server,
            step_time,
            max_model_len=256,
            until_s=0.6 * work_s,
        )
        first_s, until_s = 0.3 * work_s, 0.6 * work_s
        by_spread = service_by_spread(run, weights, spread, first_s, until_s)
        by_weight = service_by_weight(run, weights, WeightedTokens(), first_s, until_s)
        mean = sum(by_weight.values()) / len(by_weight)
        found[name] = {
            "service_per_client_and_weight": by_weight,
            "largest_deviation": max(abs(value / mean - 1) for value in by_weight.values()),
            "service_by_number_of_engines": by_spread,
            "window_s": [first_s, until_s],
            "total_s": run.total_s,
            "num_requests": len(run.requests),
            "cpu_s": time.process_time() - started_s,
        }
        print(name, found[name])
    return found


def service_by_spread(
    run: FleetRun, weights: dict[str, float], spread: np.ndarray, since_s: float, until_s: float
) -> dict[int, float]:
    """Service per weight of clients that send to one or two engines."""
    total, share = dict.fromkeys(SPREADS, 0.0), dict.fromkeys(SPREADS, 0.0)
    for client, weight in weights.items():
        share[int(spread[int(client)])] += weight
    for request in run.requests:
        if request.finished_s is not None and since_s <= request.finished_s < until_s:
            total[int(spread[int(request.client_id)])] += request.num_prompt_tokens + 2 * request.num_output_tokens
    return {number: total[number] / share[number] for number in SPREADS}


def main() -> None:
    """Run both; ``--quick`` runs small ones and writes nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=(*WORKLOADS, "fairness-small", "fairness-large"))
    args = parser.parse_args()
    replicas = REPLICAS[:2] if args.quick else REPLICAS
    for name in WORKLOADS:
        if args.only in (None, name):
            found = routing(name, replicas)
            if not args.quick:
                parameters = {
                    "rate_per_replica": RATE_PER_REPLICA,
                    "duration_s": DURATION_S,
                    "adapters_per_replica": ADAPTERS_PER_REPLICA,
                    "profile": "a10g-llama-7b",
                    "server": "chunked",
                }
                write_result(RESULTS / f"routing-{name}--simulated.json", "routing", parameters, {"runs": found})
    for name, size, variants in (("small", SMALL, ("shared", "local")), ("large", LARGE, ("shared",))):
        if args.only in (None, f"fairness-{name}") and not (args.quick and name == "large"):
            shares = fairness(*size, variants)
            if not args.quick:
                sizes = dict(zip(("replicas", "clients", "requests_per_weight"), size, strict=True))
                parameters = {**sizes, "sync_s": SYNC_S, "weights": WEIGHTS, "engines_per_client": SPREADS}
                write_result(RESULTS / f"routing-fairness-{name}--simulated.json", "routing-fairness", parameters, shares)


if __name__ == "__main__":
    main()
