"""The measures against hand-computed runs and against a slow, literal reading of the published formulas."""

import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenflow.fairness.books.cost import KVBytesTime, ProfiledQuadratic, WeightedTokens
from evenflow.fairness.measures.fairness_measures import (
    Accounts,
    Windows,
    accumulated_difference,
    bound_2u,
    entitlements,
    jain_index,
    measure_run,
    response_times,
    service_differences,
)
from evenflow.fairness.measures.runlog import RequestRecord, RunLog, ServiceLog, backlog_by_client, intersect

COST = WeightedTokens()


def random_log(seed: int, num_requests: int = 120) -> RunLog:
    rng = random.Random(seed)
    requests, tokens = [], []
    for i in range(num_requests):
        arrival = rng.uniform(0, 600)
        admitted = arrival + rng.choice([0.0, rng.uniform(0, 100)])
        first = admitted + rng.uniform(0.1, 1)
        output = rng.choice([1, 5, 60])
        last = first + 0.05 * (output - 1)
        client = f"{i % 5}"
        rejected = rng.random() < 0.2
        record = RequestRecord(client, arrival, rng.randint(1, 300), 0 if rejected else output, output, rejected)
        if not rejected:
            record.admitted_s, record.first_token_s, record.finished_s = admitted, first, last
            tokens.append((first, client, COST(record.input_tokens, 1)))
            tokens += [(first + 0.05 * k, client, 2.0) for k in range(1, output)]
        requests.append(record)
    service = ServiceLog()
    for time_s, client, cost in sorted(tokens):
        service.add(client, time_s, cost)
    return RunLog(requests, service, max(t for t, _, _ in tokens), memory_tokens=10_000)


def literal_paper_differences(log: RunLog, horizon: float) -> list[float]:
    """The published script's formula, request by request and window by window."""
    clients = sorted({r.client_id for r in log.requests})
    kept = [r for r in log.requests if not r.is_rejected]
    values = []
    for k in range(1, 20):
        left = (horizon - 30) / 20 * k
        right = left + 60
        service, demand = {}, {}
        for c in clients:
            service[c] = demand[c] = 0.0
            for r in kept:
                if r.client_id != c:
                    continue
                cost = r.input_tokens + 2 * r.output_tokens
                length = r.finished_s - r.first_token_s
                if length > 0:
                    service[c] += cost * max(0.0, min(right, r.finished_s) - max(left, r.first_token_s)) / length / 60
                elif left <= r.first_token_s < right:
                    service[c] += cost / 60
                if left < r.arrival_s <= right:
                    demand[c] += cost / 60
        best = max(service.values())
        values.append(sum(min(best - service[c], abs(demand[c] - service[c])) for c in clients))
    return values


@pytest.mark.parametrize("seed", range(5))
def test_paper_differences_equal_the_published_formula(seed):
    log = random_log(seed)
    found = service_differences(Accounts(log, "paper"), Windows(600.0))
    assert found == pytest.approx(literal_paper_differences(log, 600.0), rel=1e-6, abs=1e-6)
    fairness = measure_run(log, "paper", Windows(600.0))
    assert fairness.max_diff == pytest.approx(max(found))
    assert fairness.avg_diff == pytest.approx(sum(found) / 19)
    assert fairness.diff_var == pytest.approx(np.var(found))


def test_windows_are_those_of_the_published_scripts():
    starts = Windows(600.0).starts_s
    assert len(starts) == 19
    assert starts[0] == pytest.approx(28.5)
    assert starts[-1] == pytest.approx(541.5)


def two_clients(rejected: bool = False) -> RunLog:
    """a gets twice the tokens of b; one request each, both waiting from 0 until admitted at 100."""
    service = ServiceLog()
    for t in range(101, 201):
        service.add("a", float(t), 20.0)
        service.add("b", float(t), 10.0)
    requests = [
        RequestRecord("a", 0.0, 0, 1000, 1000, admitted_s=0.5, first_token_s=101.0, finished_s=200.0),
        RequestRecord("a", 0.0, 0, 0, 0, admitted_s=150.0, first_token_s=200.0, finished_s=200.0),
        RequestRecord("b", 0.0, 0, 500, 500, admitted_s=150.0, first_token_s=101.0, finished_s=200.0),
    ]
    if rejected:
        requests.append(RequestRecord("c", 20.0, 100, 0, 450, is_rejected=True))
    return RunLog(requests, service, 200.0, memory_tokens=5)


def test_token_measure_counts_tokens_when_they_are_computed():
    accounts = Accounts(two_clients(), "token")
    assert accounts.service("a", [0, 100.99, 101, 150, 1e9]).tolist() == [0, 0, 20, 1000, 2000]
    assert accounts.demand("a", [0.0]).tolist() == [2000]
    # both were backlogged until 150: a had received 1000 by then and b 500
    assert accumulated_difference(accounts, Windows(200.0)) == pytest.approx(500)
    fairness = measure_run(two_clients(), "token", Windows(200.0))
    assert fairness.per_client["a"].share == pytest.approx(2 / 3)
    assert fairness.per_client["b"].service == 1000
    assert fairness.bound_2u == 20.0
    assert fairness.throughput_tok_s == pytest.approx(1500 / 200)


def test_rejected_requests_are_demand_in_the_token_measure_only():
    log = two_clients(rejected=True)
    assert measure_run(log, "paper", Windows(200.0)).per_client["c"].demand == 0
    token = measure_run(log, "token", Windows(200.0))
    assert token.per_client["c"].demand == 1000
    assert (token.served, token.rejected) == (3, 1)
    assert token.per_client["c"].ttft_mean_s is None


def test_weights_divide_service_in_the_token_measure():
    log = two_clients()
    log.weight_by_client = {"a": 2.0, "b": 1.0}
    accounts = Accounts(log, "token")
    assert accumulated_difference(accounts, Windows(200.0)) == pytest.approx(0)
    assert service_differences(accounts, Windows(200.0)) == pytest.approx(np.zeros(19), abs=1e-9)
    assert measure_run(log, "token", Windows(200.0)).jain == pytest.approx(1.0)
    assert measure_run(log, "paper", Windows(200.0)).avg_diff > 0
    assert bound_2u(log) == 20.0


def test_share_falls_back_to_the_last_arrival():
    log = two_clients()
    log.requests[2].admitted_s = 0.0  # b never waits: there is no time in which both are backlogged
    log.requests = [*log.requests, RequestRecord("a", 110.0, 0, 0, 0)]
    share = measure_run(log, "token", Windows(200.0)).per_client
    assert share["a"].share == pytest.approx(2 / 3)
    assert share["a"].share + share["b"].share == pytest.approx(1)


def test_response_times_are_means_around_each_time():
    log = two_clients()
    found = response_times(log, "a", [60, 71, 185, 300])
    assert math.isnan(found[0])
    assert found[1:3] == [101.0, 200.0]
    assert math.isnan(found[3])


def test_an_empty_run_has_measures():
    fairness = measure_run(RunLog([], ServiceLog(), 0.0), "paper", Windows(600.0))
    assert (fairness.max_diff, fairness.served, fairness.ttft_p99_s, fairness.jain) == (0.0, 0, None, 1.0)
    with pytest.raises(ValueError, match="paper, token"):
        Accounts(RunLog([], ServiceLog(), 0.0), "other")


def test_jain():
    assert jain_index([1, 1, 1]) == pytest.approx(1)
    assert jain_index([1, 0, 0, 0]) == pytest.approx(0.25)
    # the published overload-multi run under FCFS
    assert jain_index([0.4] * 3 + [0.6] * 5) == pytest.approx(0.967, abs=5e-4)


def test_entitlement_is_max_min_fair():
    assert entitlements([10, 100, 100], [1, 1, 1], 90).tolist() == pytest.approx([10, 40, 40])
    assert entitlements([100, 100], [1, 3], 80).tolist() == pytest.approx([20, 60])
    assert entitlements([5, 5, 0], [1, 1, 1], 80).tolist() == [5, 5, 0]


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0.1, 10)), min_size=1, max_size=12), st.floats(0, 5e3))
def test_entitlements_divide_everything_and_never_more_than_asked(clients, capacity):
    demand, weights = zip(*clients, strict=True)
    given_out = entitlements(demand, weights, capacity)
    assert given_out.sum() == pytest.approx(min(capacity, sum(demand)), rel=1e-6, abs=1e-6)
    assert (given_out <= np.array(demand) + 1e-6).all()
    for i in range(len(demand)):
        if given_out[i] < demand[i] - 1e-6:  # who wants more has at least as much per weight as everybody
            assert (given_out[i] / weights[i] >= given_out / np.array(weights) - 1e-6).all()


@given(st.integers(0, 10_000))
def test_backlog_intervals_against_counting(seed):
    log = random_log(seed, num_requests=25)
    backlog = backlog_by_client(log)
    both = intersect(backlog.get("0", []), backlog.get("1", []))
    for t in np.linspace(0.5, 650, 40):
        waiting = {r.client_id for r in log.requests if not r.is_rejected and r.arrival_s <= t < r.admitted_s}
        assert any(a <= t < b for a, b in both) == ({"0", "1"} <= waiting)


def test_costs():
    assert WeightedTokens()(256, 256) == 768
    assert WeightedTokens()(156, 256, 100) == pytest.approx(156 + 10 + 512)
    assert ProfiledQuadratic()(256, 256) == pytest.approx(554.8, abs=0.1)
    assert ProfiledQuadratic()(256, 0) == pytest.approx(54.9, abs=0.1)
    assert KVBytesTime(2.0, 0.5)(10, 3) == 10 + 11 + 12 + 13


@given(st.integers(0, 4000), st.integers(0, 4000), st.integers(0, 4000))
def test_costs_are_monotone_and_a_cached_token_is_never_dearer(x, y, cached):
    for cost in (WeightedTokens(), ProfiledQuadratic(), KVBytesTime()):
        assert cost(x + 1, y, cached) >= cost(x, y, cached)
        assert cost(x, y + 1, cached) >= cost(x, y, cached)
        assert cost(x, y, cached + 1) >= cost(x, y, cached)
        assert cost(x, y, cached + 1) <= cost(x + 1, y, cached)


def test_fairness_loads_no_torch():
    code = (
        "import sys, evenflow.fairness, evenflow.fairness.measures.fairness_measures, evenflow.fairness.measures.runlog;"
        "from evenflow.fairness import *;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
