"""What choosing and charging cost with many clients: VTC's heap against a linear scan, from 100 to 100,000 clients.

    python benchmarks/recipes/fairness_scale.py --json benchmarks/results/fairness-scale--MACHINE.json

Ten requests wait per client (1,000,000 at 100,000 clients). A round admits one request and charges 32 running ones for a
token each, as a busy server's step does; the oldest running request then ends and its client sends another. Selection is
pick + remove + admit, heap repair included; charge is one ``charge``. The linear scan is min() over the counters of the
waiting clients, the least that a scan could do. Memory of idle clients: after every client has been served and has gone.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
import tracemalloc
from collections import deque
from pathlib import Path
from typing import Any

from evenflow.bench.harness import write_result
from evenflow.fairness import ClientQueues, Service, create_policy
from evenflow.fairness.measures.runlog import RequestRecord
from evenflow.fairness.toy_server import ToyRequest

NUM_CLIENTS = (100, 1_000, 10_000, 100_000)
WAITING_PER_CLIENT = 10
NUM_RUNNING = 32
TOKEN = Service(decode_tokens=1)
POLICIES = ("vtc", "vtc-predict", "drr", "hierarchy", "vtc-adapter")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20_000)
    args = parser.parse_args()
    curve = []
    for num_clients in NUM_CLIENTS:
        for policy in POLICIES:
            point = measure(policy, num_clients, args.rounds)
            print(point, file=sys.stderr, flush=True)
            curve.append(point)
    idle = idle_memory(20_000)
    print(idle, file=sys.stderr)
    parameters = {"rounds": args.rounds, "waiting_per_client": WAITING_PER_CLIENT, "running": NUM_RUNNING}
    write_result(args.json, "fairness-scale", parameters, {"curve": curve, "idle_memory": idle})


def measure(spec: str, num_clients: int, rounds: int) -> dict[str, Any]:
    rng = random.Random(0)
    queues = ClientQueues()
    policy = create_policy(spec, queues=queues)
    next_id = 0

    def submit(client: str) -> None:
        nonlocal next_id
        next_id += 1
        record = RequestRecord(client, 0.0, 1, 0, 1)
        request = ToyRequest(next_id, client, rng.randint(1, 500), rng.randint(1, 500), 0.0, f"a{next_id % 50}", record=record)
        policy.arrive(request, 0.0)
        if queues.push(request):
            policy.backlogged(client)

    for i in range(num_clients):
        for _ in range(WAITING_PER_CLIENT):
            submit(f"team{i % 97}/c{i}")
    gc.collect()
    gc.disable()
    running: deque[ToyRequest] = deque()
    select_ns: list[int] = []
    charge_ns: list[int] = []
    clock = time.perf_counter_ns
    for _ in range(rounds):
        start = clock()
        request = policy.pick(0.0)
        assert isinstance(request, ToyRequest)
        is_last = queues.remove(request)
        policy.admitted(request, Service(prefill_tokens=request.num_prompt_tokens))
        if is_last:
            policy.emptied(request.client_id)
        select_ns.append(clock() - start)
        running.append(request)
        start = clock()
        for r in running:
            policy.charge(r, TOKEN)
        charge_ns.append((clock() - start) // len(running))
        if len(running) > NUM_RUNNING:
            ended = running.popleft()
            policy.settle(ended)
            submit(ended.client_id)
    gc.enable()
    keys = dict(policy.counters())
    scans = []
    for _ in range(20):
        start = clock()
        min(keys, key=keys.__getitem__)
        scans.append(clock() - start)
    policy.check_integrity(set(queues.clients))
    select_ns.sort()
    return {
        "policy": spec,
        "clients": num_clients,
        "waiting": num_clients * WAITING_PER_CLIENT,
        "select_us_mean": statistics.mean(select_ns) / 1e3,
        "select_us_p99": select_ns[int(0.99 * len(select_ns))] / 1e3,
        "charge_us_mean": statistics.mean(charge_ns) / 1e3,
        "linear_scan_us": statistics.median(scans) / 1e3,
    }


def idle_memory(num_clients: int) -> dict[str, Any]:
    """Bytes that the policy and the queues hold after many clients were served once and left, while one stays."""
    result = {}
    for spec in ("vtc", "vtc-predict", "rpm:5", "hierarchy"):
        queues = ClientQueues()
        policy = create_policy(spec, queues=queues)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for i in range(num_clients):
            for client in (f"c{i}", "steady"):
                record = RequestRecord(client, 0.0, 1, 0, 1)
                request = ToyRequest(2 * i + (client == "steady"), client, 50, 10, float(i * 20), record=record)
                if not policy.arrive(request, request.arrival_s).is_accepted:
                    continue
                if queues.push(request):
                    policy.backlogged(client)
                assert policy.pick(request.arrival_s) is request
                is_last = queues.remove(request)
                policy.admitted(request, Service(prefill_tokens=50))
                if is_last:
                    policy.emptied(client)
                policy.charge(request, Service(prefill_tokens=50, decode_tokens=10))
                request.num_output_tokens, request.is_complete = 10, True
                policy.settle(request)
        del request, record
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        result[spec] = {"clients_seen": num_clients, "bytes_held": held, "bytes_per_idle_client": held / num_clients}
        result[spec]["clients_remembered"] = len(policy.counters())
    return result


if __name__ == "__main__":
    main()
