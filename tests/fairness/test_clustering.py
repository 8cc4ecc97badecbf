"""Adapter clustering: a soft limit, no adapter starves, no place stays empty, and every client's bound with its extra term."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.fairness import ClientQueues, PolicyDefaults, create_policy
from evenflow.fairness.measures.fairness_measures import Accounts, Windows, accumulated_difference, bound_2u
from evenflow.fairness.policies.clustering import Clustered
from evenflow.fairness.policies.passthrough import PassThrough
from evenflow.fairness.toy_server import ToyServer

MEMORY, LONGEST_INPUT, LONGEST_OUTPUT = 400, 60, 40


class Watched(PassThrough):
    """Whom the policy inside would have started, at each start of another one; time as the scheduler tells it."""

    def __init__(self, policy, inner) -> None:
        super().__init__(policy)
        self._inner = inner
        self._now_s = 0.0
        self.heads: list[tuple[float, object, object]] = []
        """(time, whose turn it was, who was picked)"""

    def pick(self, now_s):
        self._now_s = now_s
        picked = super().pick(now_s)
        self.heads.append((now_s, self._inner.pick(now_s), picked))
        return picked


def a_server(spec: str, **kwargs):
    queues = ClientQueues()
    policy = create_policy(spec, queues=queues, seed=1, is_simulation=True)
    watched = Watched(policy, policy._policy)  # type: ignore[attr-defined]
    return ToyServer(watched, queues, **{"memory_tokens": MEMORY, **kwargs}), watched


def random_run(spec: str, seed: int, steps: int = 300, check=None, **kwargs):
    rng = random.Random(seed)
    server, watched = a_server(spec, **kwargs)
    rates = {str(c): rng.choice([0.1, 0.5, 2.0]) for c in range(4)}
    for step in range(steps):
        for client, rate in rates.items():
            if rng.random() < rate:
                adapter = rng.choice([None, "a", "a", "b", "c", f"own-{client}", f"rare-{rng.randint(0, 20)}"])
                server.submit(client, rng.randint(1, LONGEST_INPUT), rng.randint(1, LONGEST_OUTPUT), adapter)
        if server.running and rng.random() < 0.05:
            server.abort(rng.choice(server.running))
        server.step()
        if step % 20 == 0:
            server.check_integrity()
        if check is not None:
            check(server)
    return server, watched


def passed_over_s(watched, request) -> float:
    """Seconds of the request's wait in which the line was passed over, by the log of picks alone."""
    total = 0.0
    end_s = request.record.admitted_s if request.record.admitted_s is not None else float("inf")
    for (start_s, head, picked), (until_s, *_) in zip(watched.heads, watched.heads[1:], strict=False):
        if picked is not head and start_s >= request.arrival_s and until_s <= end_s:
            total += until_s - start_s
    return total


@pytest.mark.parametrize("age_s", [0.0, 3.0, 10.0])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=6, deadline=None)
def test_nobody_is_passed_over_for_longer_than_the_age(age_s, seed):
    """First come, first served: of nobody's wait is more than the age (and a step) passed over, whatever the load."""
    server, watched = random_run(f"cluster:1:{age_s}+fcfs", seed)
    waits = [passed_over_s(watched, request) for request in server.requests]
    assert max(waits) <= age_s + 1.0
    if age_s == 0.0:
        assert all(picked is head for _, head, picked in watched.heads)


@pytest.mark.parametrize("spec", ["vtc", "vtc-predict", "drr:50", "round-robin"])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=4, deadline=None)
def test_whose_turn_it_is_waits_no_longer_than_the_age_for_others(spec, seed):
    _, watched = random_run(f"cluster:1:4+{spec}", seed)
    waited: dict[object, float] = {}
    for (start_s, head, picked), (until_s, *_) in zip(watched.heads, watched.heads[1:], strict=False):
        if picked is not head:
            waited[head] = waited.get(head, 0.0) + until_s - start_s
    assert max(waited.values(), default=0.0) <= 4.0 + 1.0


def flood(spec: str):
    """Adapter a never stops asking; one request to adapter b comes at second 5."""
    server, _ = a_server(spec, memory_tokens=100)
    rare = None
    for step in range(200):
        for _ in range(3):
            server.submit("flood", 10, 10, "a")
        if step == 5:
            rare = server.submit("rare", 10, 10, "b")[1]
        server.step()
    return server, rare


def test_what_the_policy_inside_holds_is_closed():
    class Holding(PolicyDefaults):
        is_open = True

        def close(self) -> None:
            self.is_open = False

    inner = Holding()
    Clustered(inner, 2).close()
    assert not inner.is_open
    Clustered(PolicyDefaults(), 2).close()


def test_without_an_age_a_rare_adapter_starves_and_with_one_it_does_not():
    assert flood("cluster:1:inf:inf+vtc")[1].record.admitted_s is None
    rare = flood("cluster:1:8:inf+vtc")[1]
    # 8 s, and the ten-step batch that it then has to wait for
    assert 8.0 <= rare.record.admitted_s - rare.arrival_s <= 8.0 + 11.0
    assert flood("cluster:1:inf:40+vtc")[1].record.admitted_s is not None, "the deficit bounds it too"


@pytest.mark.parametrize("deficit", [0.0, 100.0, 1000.0])
@pytest.mark.parametrize("spec", ["vtc", "vtc-predict"])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_clients_stay_within_the_bound_and_the_deficit(spec, deficit, seed):
    u = max(LONGEST_INPUT, 2 * MEMORY)

    def check(server) -> None:
        counters = [server.policy.counters()[c] for c in server.queues.clients]
        if counters:
            assert max(counters) - min(counters) <= u + deficit

    server, _ = random_run(f"cluster:1:inf:{deficit}+{spec}", seed, check=check)
    log = server.log()
    assert accumulated_difference(Accounts(log, "token"), Windows(300.0)) <= bound_2u(log) + 2 * deficit


def test_the_deficit_is_used_and_not_exceeded():
    """A client with the resident adapter gets ahead by the deficit, and no further than a batch beyond it."""
    spread = {}
    for deficit in (0, 300, 1000):
        server, _ = a_server(f"cluster:1:inf:{deficit}+vtc", memory_tokens=60)
        spread[deficit] = 0.0
        for _ in range(150):
            for _ in range(3):
                server.submit("same", 5, 5, "a")
            server.submit("other", 5, 5, f"x{len(server.requests)}")
            server.step()
            counters = server.policy.counters()
            spread[deficit] = max(spread[deficit], counters["same"] - counters["other"])
    assert spread[0] <= 120
    assert 300 - 15 <= spread[300] <= 300 + 120
    assert 1000 - 15 <= spread[1000] <= 1000 + 120


@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_no_place_stays_empty(seed):
    """Whenever somebody waits somebody is picked, and the whole takes as long as without clustering, but for the last batch."""
    clustered, watched = random_run("cluster:1:inf:inf+fcfs", seed)
    assert all((head is None) == (picked is None) for _, head, picked in watched.heads)
    plain = random_run("cluster:1000+fcfs", seed)[0]
    served = [sum(r.record.output_tokens for r in server.requests) for server in (clustered, plain)]
    assert served[0] >= 0.9 * served[1]


def distinct_running(spec: str) -> float:
    rng = random.Random(3)
    server, _ = a_server(spec, memory_tokens=80)
    found = []
    for _ in range(200):
        for _ in range(3):
            server.submit(f"c{rng.randint(0, 3)}", 4, 6, f"a{int(12 * rng.random() ** 2)}")
        server.step()
        found.append(len({r.adapter for r in server.running}))
    return sum(found[50:]) / len(found[50:])


@pytest.mark.parametrize("spec", ["fcfs", "vtc"])
def test_fewer_distinct_adapters_run(spec):
    loose, tight = distinct_running(f"cluster:1000+{spec}"), distinct_running(f"cluster:2:60+{spec}")
    assert tight < 0.7 * loose


def test_the_rule_of_the_paper_by_hand():
    """Two adapters run, d = 2: first those of a and b in order, then the rest in order; base requests need no adapter."""
    server, _ = a_server("cluster:2:inf:inf+fcfs", memory_tokens=1000, max_running=2)
    for adapter in ("a", "b", "c", "b", "d", "a", None, "c"):
        server.submit("x", 2, 1, adapter)
    order = []
    while server.queues.num_clients or server.running:
        before = {r.request_id for r in server.requests if r.was_admitted}
        server.step()
        order += [r.adapter for r in server.requests if r.was_admitted and r.request_id not in before]
    # one step each, two at a time: a and b start; their batch is over before the next starts, so d never binds
    assert order == ["a", "b", "c", "b", "d", "a", None, "c"]
    server, _ = a_server("cluster:2:inf:inf+fcfs", memory_tokens=1000, max_running=3)
    keep = [server.submit("x", 2, 50, adapter)[1] for adapter in ("a", "b")]
    server.step()
    later = [server.submit("x", 2, 1, adapter)[1] for adapter in ("c", "b", "d", "a", None, "c")]
    for _ in range(10):
        server.step()
    assert all(r in server.running for r in keep)
    admitted = sorted((r for r in later), key=lambda r: r.record.admitted_s)
    assert [r.adapter for r in admitted] == ["b", "a", None, "c", "d", "c"]
