"""What every policy owes to every scheduler, over all registered policies and random lives of requests."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.base.errors import RegistryError
from evenflow.fairness import ClientQueues, create_policy, policy_registry
from evenflow.fairness.toy_server import ToyServer

EXTRA_SPECS = (
    "rpm:2",
    "drr:50",
    "vtc-predict:ewma",
    "vtc-predict:quantile:0.8",
    "vtc-oracle:0.5",
    "vtc-adapter:20:0",
    "vtc-preempt:10",
    "fair:10",
    "cluster:1+fair",
    "cluster:1+vtc",
    "cluster:2:3:50+vtc-predict",
    "cluster:1:inf:inf+fcfs",
    "cluster:1+rpm:4",
    "cluster:1+lcfs",
    "cluster:1+lcfs-overload",
    "cluster:1+round-robin",
    "cluster:1:2:30+drr:50",
    "cluster:1+hierarchy",
    "cluster:1+vtc-adapter:20:0",
    "cluster:1+vtc-client-adapter",
    "cluster:1+vtc-adapter-client",
    "cluster:1+vtc-preempt:10",
    "cluster:1+cluster:2+vtc",
)
NEWEST_FIRST = ("lcfs", "lcfs-overload")
SPECS = [*(name for name in policy_registry() if name != "vtc-shared"), *EXTRA_SPECS]
"""vtc-shared needs a server of its own: tests/fairness/test_shared_counters.py."""

ACTION = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 4), st.integers(1, 40), st.integers(1, 12)),
    st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("abort"), st.integers(0, 1000)),
    st.tuples(st.just("preempt")),
)
ACTIONS = st.lists(ACTION, max_size=60)
CHANGE = st.tuples(
    st.just("change"), st.integers(0, 4), st.sampled_from(["gold", "silver", None]), st.sampled_from([0.5, 1, 4])
)
"""Of a client's tier, its own weight and the weight of gold."""


def a_server(spec: str, weights=None, shares=None, **kwargs) -> ToyServer:
    queues = ClientQueues()
    weights, tiers, tier_weights = shares or (weights, {}, {})
    policy = create_policy(
        spec,
        queues=queues,
        weights=weights,
        seed=1,
        is_simulation=True,
        tier_by_client=tiers,
        weight_by_tier=tier_weights,
    )
    return ToyServer(policy, queues, **{"memory_tokens": 120, **kwargs})


def act(server: ToyServer, action: tuple) -> None:
    if action[0] == "submit":
        _, client, input_tokens, output_tokens = action
        server.submit(f"c{client}", input_tokens, output_tokens, adapter=f"a{(client + output_tokens) % 3}")
    elif action[0] == "step":
        for _ in range(action[1]):
            server.step()
    elif action[0] == "abort":
        alive = [*server.running, *(r for c in list(server.queues.clients) for r in server.queues.waiting(c))]
        if alive:
            server.abort(alive[action[1] % len(alive)])
    else:
        server.preempt()


@pytest.mark.parametrize("spec", SPECS)
@given(actions=st.lists(st.one_of(ACTION, CHANGE), max_size=60))
@settings(max_examples=25, deadline=None)
def test_books_stay_in_order_and_everybody_is_served(spec, actions):
    weights, tiers, tier_weights = {"c1": 2.0, "c2": 0.5}, {"c0": "gold"}, {"gold": 4.0, "silver": 1.0}
    server = a_server(spec, shares=(weights, tiers, tier_weights))
    for action in actions:
        if action[0] == "change":
            _, number, tier, weight = action
            tiers.pop(f"c{number}", None)
            if tier is not None:
                tiers[f"c{number}"] = tier
            weights[f"c{number}"] = tier_weights["gold"] = weight
            server.policy.shares_changed()
        else:
            act(server, action)
        server.check_integrity()
        assert server.policy.pick(server.now_s) is server.policy.pick(server.now_s), "pick shows a side effect"
        picked = server.policy.pick(server.now_s)
        waiting = [r for c in list(server.queues.clients) for r in server.queues.waiting(c)]
        for at_most in (1, 3):
            upcoming = list(server.policy.upcoming(at_most))
            assert len(upcoming) <= at_most
            assert len({id(r) for r in upcoming}) == len(upcoming)
            assert all(r in waiting for r in upcoming), "a request was announced that does not wait"
            assert not upcoming or upcoming[0] is picked or "adapter" in spec or "cluster" in spec, (
                "the first guess is what pick says"
            )
        assert server.policy.pick(server.now_s) is picked, "looking ahead shows a side effect"
        assert (picked is not None) == (server.queues.num_clients > 0), "work is waiting and nothing is picked, or the reverse"
        if picked is not None:
            assert picked in list(server.queues.waiting(picked.client_id)), "a request was picked that does not wait"
    for _ in range(3000):
        if not server.running and not server.queues.num_clients:
            break
        server.step()
        server.check_integrity()
    assert not server.running, "the server is not empty after everything had time to finish"
    assert not server.queues.num_clients
    assert all(r.is_complete or r.record.is_rejected or r.record.finished_s is not None for r in server.requests)


class Audited:
    """A policy whose counters are read before and after every call that may charge: the sum of changes by request."""

    def __init__(self, policy) -> None:
        self.policy = policy
        self.charged: dict[int, float] = {}
        self.is_ledger = True

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def _watch(self, call, request, *args) -> None:
        client = request.client_id
        before = self.policy.counters().get(client)
        call(request, *args)
        after = self.policy.counters().get(client)
        if before is None or after is None:
            self.is_ledger = False
        else:
            self.charged[request.request_id] = self.charged.get(request.request_id, 0.0) + after - before

    def admitted(self, request, planned) -> None:
        self._watch(self.policy.admitted, request, planned)

    def charge(self, request, service) -> None:
        self._watch(self.policy.charge, request, service)

    def settle(self, request) -> None:
        self._watch(self.policy.settle, request)


@pytest.mark.parametrize("spec", SPECS)
@given(actions=ACTIONS)
@settings(max_examples=20, deadline=None)
def test_what_is_settled_is_what_was_received(spec, actions):
    """Finished, aborted at any moment or preempted: the changes of the counter add up to the price of the tokens."""
    weights = {"c1": 2.0, "c2": 0.5}
    server = a_server(spec, weights=weights, memory_tokens=10**8, max_running=9)
    audit = server.policy = Audited(server.policy)
    # one endless request of each client, so that no counter is forgotten in between
    keepers = [server.submit(f"c{i}", 1, 10**6)[1] for i in range(5)]
    server.step()
    if not audit.is_ledger:  # it keeps no counters, or keeps them of something else than clients
        assert not set(audit.policy.counters()) & {f"c{i}" for i in range(5)}
        return
    for action in actions:
        if action[0] == "abort":
            alive = [r for r in server.requests if r not in keepers and r.was_admitted and not r.is_complete]
            alive = [r for r in alive if r.record.finished_s is None]
            if alive:
                server.abort(alive[action[1] % len(alive)])
        else:
            act(server, action)
        server.check_integrity()
    for request in server.requests:
        if request.was_admitted and request.record.finished_s is not None:
            price = 0.0
            if request.is_prompt_done:
                price = request.num_prompt_tokens + 2.0 * request.num_output_tokens
            charged = audit.charged[request.request_id] * weights.get(request.client_id, 1.0)
            assert charged == pytest.approx(price, abs=1e-6), f"request {request} was charged {charged}, not {price}"


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.endswith(NEWEST_FIRST)])
def test_the_queue_of_one_client_is_in_order_of_arrival(spec):
    server = a_server(spec, max_running=2)
    requests = [server.submit("a", 2, 1 + i % 3)[1] for i in range(20)]
    for _ in range(60):
        server.step()
    admitted = [r.record.admitted_s for r in requests if not r.record.is_rejected]
    assert admitted == sorted(admitted)
    assert len(admitted) >= 2


@pytest.mark.parametrize("spec", SPECS)
def test_a_policy_can_be_closed_and_closed_again(spec):
    policy = a_server(spec).policy
    policy.close()
    policy.close()


@pytest.mark.parametrize("spec", SPECS)
def test_a_victim_is_one_of_those_that_run(spec):
    server = a_server(spec)
    assert server.policy.victim([]) is None
    for client in "abc":
        server.submit(client, 5, 9)
    server.step()
    assert server.policy.victim(server.running) in server.running


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nope", "known: .*drr, fair, fcfs, .*vtc"),
        ("lcfs:1", "takes no argument"),
        ("lcfs-overload:1", "'lcfs-overload' takes no argument"),
        ("cluster:8", r"in front of a policy, as in cluster:8\+vtc"),
        ("cluster:8+", "in front of a policy"),
        ("cluster+vtc", "distinct adapters from 1, .* got None"),
        ("cluster:0+vtc", "got '0'"),
        ("cluster:2:-1+vtc", "got '2:-1'"),
        ("cluster:2:nan+vtc", "got '2:nan'"),
        ("cluster:2:1:x+vtc", "got '2:1:x'"),
        ("cluster:2:1:5:3+vtc", "got '2:1:5:3'"),
        ("cluster:2+nope", "unknown policy 'nope'"),
        ("cluster:2+fcfs:1", "takes no argument"),
        ("fcfs+vtc", r"unknown policy 'fcfs\+vtc'"),
        ("fcfs:1", "takes no argument"),
        ("vtc:x", "takes no argument"),
        ("lcf:", "takes no argument"),
        ("round-robin:2", "takes no argument"),
        ("rpm:0", "from 1, got '0'"),
        ("rpm:x", "from 1, got 'x'"),
        ("drr:-5", "from 1, got '-5'"),
        ("vtc-predict:mean:0", "got 'mean:0'"),
        ("vtc-predict:ewma:2", "got 'ewma:2'"),
        ("vtc-predict:crystal", "got 'crystal'"),
        ("fair:0", "lead above 0.*got '0'"),
        ("fair:x", "got 'x'"),
        ("vtc-preempt:0", "lead above 0.*got '0'"),
        ("vtc-adapter:-1", "got '-1'"),
        ("vtc-adapter:5:x", "got '5:x'"),
        ("hierarchy:x", "got 'x'"),
        ("vtc-shared", "redis://HOST:PORT/DB, got None"),
        ("vtc-shared:localhost", "got 'localhost'"),
        ("vtc-oracle:2", "from 0 to 1, got '2'"),
        ("vtc-oracle:nan", "from 0 to 1"),
    ],
)
def test_wrong_names_and_arguments_are_refused_with_what_is_allowed(spec, message):
    with pytest.raises(RegistryError, match=message):
        create_policy(spec, queues=ClientQueues(), is_simulation=True)


def test_policies_for_simulations_are_refused_outside():
    with pytest.raises(RegistryError, match="only a simulation"):
        create_policy("vtc-oracle", queues=ClientQueues())
    with pytest.raises(RegistryError, match="only a simulation"):
        create_policy("vtc-half-lift", queues=ClientQueues())
