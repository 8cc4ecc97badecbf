"""Every policy against clients that want more than their share: what it promises, and what it does not.

Lengths are over- and underpredicted, requests are aborted and preempted at any moment, clients come, go and take new
names, adapters are mixed, weights range over nine decades. The toy server sets aside what a request will come to hold,
so U is the papers' max(L, 2 M).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.fairness import ClientQueues, create_policy, policy_registry
from evenflow.fairness.policies.adapter_aware import MIB
from evenflow.fairness.toy_server import ToyRequest, ToyServer

MEMORY, MAX_RUNNING = 120, 40
LONGEST_INPUT, LONGEST_OUTPUT = 30, 60
ADAPTER_MIB, PRICE_PER_MIB = 3, 2.0
U = max(LONGEST_INPUT, 2 * MEMORY)
STEP = 2 * MAX_RUNNING


@dataclass(frozen=True)
class Promise:
    """Of two payers f and g that wait all the time: |W_f / w_f - W_g / w_g| <= u (1 / w_f + 1 / w_g) + 2 slack."""

    u: float = U
    slack: float = 0.0
    """In units of service per weight."""
    payer: Callable[[ToyRequest], str] = lambda request: request.client_id
    predicts: bool = False
    """Then u is widened by B, which is at most U."""


PREDICTS = Promise(predicts=True)
PROMISES: dict[str, Promise | None] = {
    "vtc": Promise(),
    "vtc-predict": PREDICTS,
    "vtc-predict:ewma": PREDICTS,
    "vtc-predict:quantile": PREDICTS,
    "vtc-oracle": PREDICTS,
    "vtc-oracle:1": PREDICTS,
    "hierarchy": PREDICTS,
    "vtc-adapter:50": Promise(U + MAX_RUNNING * ADAPTER_MIB * PRICE_PER_MIB, 50.0, predicts=True),
    "vtc-client-adapter": PREDICTS,
    "vtc-adapter-client": Promise(payer=lambda request: request.adapter or "", predicts=True),
    "vtc-preempt:40": Promise(LONGEST_INPUT + STEP, 40.0, predicts=True),
    "fair": PREDICTS,
    "fair:40": Promise(LONGEST_INPUT + STEP, 40.0, predicts=True),
    "drr:50": Promise(slack=50.0),
    "cluster:1:2:50+vtc": Promise(slack=50.0),
    "cluster:2:inf:50+vtc-predict": Promise(slack=50.0, predicts=True),
    # These promise nothing between clients.
    "fcfs": None,
    "lcfs": None,
    "lcfs-overload": None,
    "lcf": None,
    "round-robin": None,
    "rpm:1000": None,
    "vtc-half-lift": None,
}

CLIENTS = st.integers(0, 3)
SUBMIT = st.tuples(
    st.just("submit"),
    CLIENTS,
    st.integers(1, LONGEST_INPUT),
    st.integers(1, LONGEST_OUTPUT),
    st.integers(0, 1000),  # what it may produce beyond that
    st.integers(1, 8),  # copies
    st.sampled_from([None, "x", "y", "z"]),
)
ACTION = st.one_of(
    SUBMIT,
    SUBMIT,
    st.tuples(st.just("step"), st.integers(1, 25)),
    st.tuples(st.just("step"), st.integers(1, 25)),
    st.tuples(st.just("abort"), st.integers(0, 1000)),
    st.tuples(st.just("hang up"), CLIENTS),
    st.tuples(st.just("preempt")),
    st.tuples(st.just("rename"), CLIENTS),
)
WEIGHTS = st.lists(st.sampled_from([1.0, 1.0, 1.0, 1e-9, 1e-6, 1e-3, 0.5, 3.0]), min_size=4, max_size=4)


class Contest:
    """A toy server, and of every pair of payers how their services differ while both wait."""

    def __init__(self, spec: str, weights: list[float], payer: Callable[[ToyRequest], str]) -> None:
        self.names = ["c0", "c1", "c2", "c3"]
        self.weights = dict(zip(self.names, weights, strict=True))
        queues = ClientQueues()
        self.policy = create_policy(spec, queues=queues, weights=self.weights, seed=1, is_simulation=True)
        self.server = ToyServer(self.policy, queues, MEMORY, MAX_RUNNING, adapter_bytes=int(ADAPTER_MIB * MIB))
        self.payer = payer
        self.service: dict[str, float] = {}
        self.extremes: dict[tuple[str, str], tuple[float, float]] = {}
        self.widest: dict[tuple[str, str], float] = {}
        self._counted: dict[int, float] = {}

    def act(self, action: tuple) -> None:
        kind, server = action[0], self.server
        if kind == "submit":
            _, number, input_tokens, output_tokens, beyond, copies, adapter = action
            for _ in range(copies):
                server.submit(self.names[number], input_tokens, output_tokens, adapter, output_tokens + beyond)
        elif kind == "step":
            for _ in range(action[1]):
                server.step()
                self.look()
        elif kind == "abort":
            alive = self.alive()
            if alive:
                server.abort(alive[action[1] % len(alive)])
        elif kind == "hang up":
            for request in self.alive():
                if request.client_id == self.names[action[1]]:
                    server.abort(request)
                    self.look()
        elif kind == "rename":
            number = action[1]
            new = f"{self.names[number]}'"
            self.weights[new] = self.weights[self.names[number]]
            self.names[number] = new
        else:
            server.preempt()
        self.look()
        server.check_integrity()

    def alive(self) -> list[ToyRequest]:
        waiting = [r for c in list(self.server.queues.clients) for r in self.server.queues.waiting(c)]
        return [*self.server.running, *waiting]  # type: ignore[list-item]

    def look(self) -> None:
        server = self.server
        for request in server.requests:
            if request.is_prompt_done:
                received = request.num_prompt_tokens + 2.0 * request.num_output_tokens
                gained = received - self._counted.get(request.request_id, 0.0)
                if gained:
                    self._counted[request.request_id] = received
                    self.service[self.payer(request)] = self.service.get(self.payer(request), 0.0) + gained
        waiting = {self.payer(r) for c in list(server.queues.clients) for r in server.queues.waiting(c)}
        self.extremes = {pair: found for pair, found in self.extremes.items() if waiting.issuperset(pair)}
        for pair in combinations(sorted(waiting), 2):
            f, g = (self.service.get(name, 0.0) / self.weights.get(name, 1.0) for name in pair)
            low, high = self.extremes.get(pair, (f - g, f - g))
            self.extremes[pair] = low, high = min(low, f - g), max(high, f - g)
            self.widest[pair] = max(self.widest.get(pair, 0.0), high - low)


def test_every_policy_says_what_it_promises() -> None:
    stated = {spec.rpartition("+")[2].partition(":")[0] for spec in PROMISES}
    assert stated == set(policy_registry()) - {"vtc-shared"}
    registry = policy_registry()
    for name in registry:
        text = (registry.load(name).__doc__ or "").lower()
        promise = PROMISES.get(next((spec for spec in PROMISES if spec.partition(":")[0] == name), ""))
        assert "bound" in text, name
        assert promise is not None or name == "vtc-shared" or "no bound" in text, name


@pytest.mark.parametrize("spec", [spec for spec, promise in PROMISES.items() if promise is not None])
@given(actions=st.lists(ACTION, min_size=5, max_size=40), weights=st.just([1.0] * 4) | WEIGHTS)
@settings(max_examples=25, deadline=None)
def test_nobody_gets_more_than_is_promised(spec: str, actions: list[tuple], weights: list[float]) -> None:
    promise = PROMISES[spec]
    assert promise is not None
    contest = Contest(spec, weights, promise.payer)
    for action in actions:
        contest.act(action)
    u = promise.u
    if promise.predicts:
        inner: Any = getattr(contest.policy, "_policy", contest.policy)
        assert inner._most_held <= U, "more was predicted than the memory holds"
        u += inner._most_held
    for (f, g), widest in contest.widest.items():
        per_weight = sum(1 / contest.weights.get(name, 1.0) for name in (f, g))
        assert widest <= (u * per_weight + 2 * promise.slack) * (1 + 1e-9), (f, g, contest.weights)


@pytest.mark.parametrize("spec", [spec for spec, promise in PROMISES.items() if promise is not None])
@given(
    taught=st.integers(20, LONGEST_OUTPUT),
    lies=st.integers(60, 120),
    tells=st.sampled_from(["short", "abort"]),
    delay=st.integers(0, 6),
    newcomers=st.integers(1, 2),
)
@settings(max_examples=4, deadline=None)
def test_who_teaches_a_predictor_to_expect_too_much_keeps_nobody_waiting(
    spec: str, taught: int, lies: int, tells: str, delay: int, newcomers: int
) -> None:
    """A client is charged ahead for what it never receives, and others come while its counter is high."""
    promise = PROMISES[spec]
    assert promise is not None
    contest = Contest(spec, [1.0] * 4, promise.payer)
    server = contest.server
    contest.act(("submit", 0, 1, taught, 1000, 8, "x"))
    contest.act(("step", 10 * LONGEST_OUTPUT))
    if tells == "short":
        contest.act(("submit", 0, 1, 1, 1000, lies, "x"))
    else:
        for _ in range(lies // MAX_RUNNING + 1):
            for _ in range(MAX_RUNNING):
                server.submit("c0", 1, 8, "x", 1000)
            contest.act(("step", 1))
            for request in list(server.running):
                server.abort(request)
    contest.act(("submit", 0, 20, 20, 1000, 100, "x"))
    contest.act(("step", 1 + delay))
    for newcomer in range(newcomers):
        contest.act(("submit", 1 + newcomer, 10, 10, 0, 100, "y"))
    for _ in range(30):
        contest.act(("step", 10))
    inner: Any = getattr(contest.policy, "_policy", contest.policy)
    u = promise.u + (inner._most_held if promise.predicts else 0.0)
    assert contest.widest
    assert max(contest.widest.values()) <= 2 * (u + promise.slack) * (1 + 1e-9)


@pytest.mark.parametrize("spec", [spec for spec, promise in PROMISES.items() if promise is None])
@given(actions=st.lists(ACTION, min_size=5, max_size=30), weights=WEIGHTS)
@settings(max_examples=10, deadline=None)
def test_those_that_promise_nothing_keep_their_books(spec: str, actions: list[tuple], weights: list[float]) -> None:
    contest = Contest(spec, weights, lambda request: request.client_id)
    for action in actions:
        contest.act(action)


@pytest.mark.parametrize(
    "spec", ["vtc", "vtc-predict", "hierarchy", "vtc-adapter", "vtc-client-adapter", "drr", "vtc-preempt", "fair"]
)
@pytest.mark.parametrize("light", [1e-9, 1e-4, 1e9])
def test_sharing_goes_on_after_ten_million_tokens_of_a_light_client(spec: str, light: float) -> None:
    """A double at 1e16 cannot add 1: whoever came after them was never charged for anything."""
    weights = {"light": light, "a": 1.0, "b": 2.0}
    contest = Contest(spec, [1.0] * 4, lambda request: request.client_id)
    queues = ClientQueues()
    policy = create_policy(spec, queues=queues, weights=weights, is_simulation=True)
    contest.server = server = ToyServer(policy, queues, 5_000_000 + MEMORY)
    server.submit("light", 5_000_000, 1)
    server.step()
    server.submit("light", 5_000_000, 1)
    server.step()
    server.memory_tokens = MEMORY
    for _ in range(600):
        for client in weights:
            while server.queues.num_waiting(client) < 20:
                server.submit(client, 5, 5)
        server.step()
    server.check_integrity()
    gained = {client: sum(server.service.costs.get(client, ())) for client in "ab"}
    if light < 1:
        assert gained["b"] / gained["a"] == pytest.approx(2, rel=0.25)
    else:
        assert sum(server.service.costs["light"]) > 0.9 * (10_000_000 + sum(gained.values()))


def test_ten_names_are_ten_shares_unless_they_have_a_tenant() -> None:
    """Who may take names takes shares: of four clients one with ten names gets ten thirteenths."""

    def share(spec: str, separator: str) -> float:
        queues = ClientQueues()
        server = ToyServer(create_policy(spec, queues=queues), queues, MEMORY)
        names = ["a", "b", "c", *(f"d{separator}{i}" for i in range(10))]
        for _ in range(1500):
            for name in names:
                while server.queues.num_waiting(name) < 5:
                    server.submit(name, 5, 5)
            server.step()
        by_name = {name: sum(costs) for name, costs in server.service.costs.items()}
        return sum(cost for name, cost in by_name.items() if name.startswith("d")) / sum(by_name.values())

    assert share("vtc", "/") == pytest.approx(10 / 13, abs=0.03)
    assert share("hierarchy", "/") == pytest.approx(1 / 4, abs=0.03)
