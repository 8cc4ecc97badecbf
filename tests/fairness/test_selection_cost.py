"""Choosing among many clients costs what a heap costs, not a scan. Ratios within one run, so a slow machine does not matter."""

from __future__ import annotations

import statistics
import time

import pytest

from evenflow.fairness import ClientQueues, Service, create_policy
from evenflow.fairness.measures.runlog import RequestRecord
from evenflow.fairness.toy_server import ToyRequest

NUM_CLIENTS = 20_000


@pytest.mark.parametrize("spec", ["vtc", "vtc-predict", "drr"])
def test_selection_is_far_below_a_linear_scan(spec):
    queues = ClientQueues()
    policy = create_policy(spec, queues=queues)
    for i in range(2 * NUM_CLIENTS):
        client = f"c{i % NUM_CLIENTS}"
        request = ToyRequest(i, client, 1 + i % 500, 10, 0.0, record=RequestRecord(client, 0.0, 1, 0, 1))
        policy.arrive(request, 0.0)
        if queues.push(request):
            policy.backlogged(client)
    keys = dict(policy.counters())
    selections, scans = [], []
    for round_number in range(2000):
        start = time.perf_counter()
        picked = policy.pick(0.0)
        is_last = queues.remove(picked)
        policy.admitted(picked, Service(prefill_tokens=picked.num_prompt_tokens))
        if is_last:
            policy.emptied(picked.client_id)
        policy.charge(picked, Service(prefill_tokens=picked.num_prompt_tokens, decode_tokens=1))
        selections.append(time.perf_counter() - start)
        if round_number % 100 == 0:
            start = time.perf_counter()
            min(keys, key=keys.__getitem__)
            scans.append(time.perf_counter() - start)
    assert statistics.median(selections) * 20 < statistics.median(scans)


def test_thousands_of_clients_that_left_leave_nothing_behind():
    queues = ClientQueues()
    policy = create_policy("vtc", queues=queues)
    for i in range(5000):
        for client in (f"c{i}", "steady"):
            request = ToyRequest(2 * i + (client == "steady"), client, 50, 10, 0.0, record=RequestRecord(client, 0.0, 1, 0, 1))
            assert queues.push(request)
            policy.backlogged(client)
            queues.remove(policy.pick(0.0))
            policy.admitted(request, Service(prefill_tokens=50))
            policy.emptied(client)
            policy.charge(request, Service(prefill_tokens=50, decode_tokens=10))
            policy.settle(request)
        policy.check_integrity(())
    assert len(policy.counters()) <= 1
    assert queues.num_clients == 0
