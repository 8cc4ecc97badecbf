"""A hundred thousand clients through ``evenflow replay``, in full: time and memory of the command, and what it found.

    python benchmarks/recipes/fairness_zipf.py --json benchmarks/results/fairness-zipf--MACHINE.json

The workload is ``zipf_100k``: 200,000 requests, clients by Zipf's law, on the simulated server ``a10g-llama-7b``. Each policy
is a process of its own, so that its peak memory is its own. Per-client figures are summed up: the busiest client against
the light ones, those with fewer than three requests, of whom a fair server protects every one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from evenflow.bench.harness import write_result
from evenflow.bench.replay.workload import make_workload

POLICIES = ("fcfs", "vtc", "vtc-predict")
WORKLOAD = "zipf_100k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    trace = make_workload(WORKLOAD, 0)
    num_requests = np.bincount(trace.client_index, minlength=len(trace.clients))
    light = {client for client, count in zip(trace.clients, num_requests.tolist(), strict=True) if 0 < count < 3}
    busiest = trace.clients[int(num_requests.argmax())]
    results: dict[str, Any] = {}
    for policy in POLICIES:
        results[policy] = replayed(policy, light, busiest)
        print(policy, {name: results[policy][name] for name in ("cpu_s", "wall_s", "peak_memory_bytes")}, file=sys.stderr)
    parameters = {
        "workload": trace.description,
        "profile": "a10g-llama-7b",
        "server": "paper",
        "clients_with_requests": int((num_requests > 0).sum()),
        "light_clients": len(light),
        "requests_of_the_busiest": int(num_requests.max()),
    }
    write_result(args.json, "fairness-zipf", parameters, results)


def replayed(policy: str, light: set[str], busiest: str) -> dict[str, Any]:
    """The command's cost and its runs, per-client figures summed up."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "evenflow.cli.main", "replay", "--workload", WORKLOAD, "--policy", policy]
        began_s = time.monotonic()
        process = subprocess.Popen([*command, "--json", str(out), "--quiet"])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - began_s
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        runs = json.loads(out.read_text())["runs"]
    by_measure = {}
    for run in runs:
        accounts = run.pop("per_client")
        waits = [accounts[client]["ttft_mean_s"] for client in light if accounts[client]["ttft_mean_s"] is not None]
        by_measure[run.pop("measure")] = run | {
            "light_clients_ttft_s": {f"p{q}": float(np.percentile(waits, q)) for q in (50, 90, 99)},
            "busiest_client_ttft_mean_s": accounts[busiest]["ttft_mean_s"],
        }
    cost = {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_memory_bytes": usage.ru_maxrss * 1024}
    return cost | by_measure


if __name__ == "__main__":
    main()
