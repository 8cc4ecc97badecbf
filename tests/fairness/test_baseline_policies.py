"""What the policies to compare with do, each against a hand-made case."""

from __future__ import annotations

import pytest

from evenflow.base.errors import ConfigError
from evenflow.fairness import ClientQueues, create_policy
from evenflow.fairness.toy_server import ToyServer


def a_server(spec: str, weights=None, **kwargs) -> ToyServer:
    queues = ClientQueues()
    policy = create_policy(spec, queues=queues, weights=weights, is_simulation=True)
    return ToyServer(policy, queues, **{"memory_tokens": 400, **kwargs})


def service(server: ToyServer) -> dict[str, float]:
    return {client: sum(costs) for client, costs in server.service.costs.items()}


def order(server: ToyServer) -> list[str]:
    """Clients in the order in which their requests started, one request at a time."""
    started = sorted((r for r in server.requests if r.was_admitted), key=lambda r: r.record.admitted_s)
    return [r.client_id for r in started]


def flood(server: ToyServer, steps: int, **shapes: tuple[int, int]) -> None:
    """Keep every client backlogged with requests of its (input, output) shape."""
    for _ in range(steps):
        for client, (input_tokens, output_tokens) in shapes.items():
            while server.queues.num_waiting(client) < 100:
                server.submit(client, input_tokens, output_tokens)
        server.step()


def test_rpm_counts_accepted_requests_in_a_sliding_minute():
    server = a_server("rpm:2")
    policy = server.policy
    for now, accepted in [
        (0, True),
        (10, True),
        (10, False),
        (59.9, False),
        (60, False),
        (60.1, True),
        (69, False),
        (70.5, True),
    ]:
        server.now_s = now
        verdict, request = server.submit("a", 1, 1)
        assert verdict.is_accepted is accepted, f"at {now}"
        if not accepted:
            assert verdict.retry_after_s == pytest.approx((60 if now <= 60 else 70) - now, abs=1e-9)
            assert "2 requests per minute" in verdict.reason
            assert request.record.is_rejected
        policy.check_integrity(set(server.queues.clients))
    assert server.submit("b", 1, 1)[0].is_accepted, "another client's limit is its own"


def test_rpm_forgets_clients_that_were_away():
    server = a_server("rpm:3")
    for i in range(1000):
        server.now_s = float(i)
        server.submit(f"c{i}", 1, 1)
    assert len(server.policy._times_by_client) <= 62  # type: ignore[attr-defined]


def test_round_robin_takes_one_request_of_each_in_turn():
    server = a_server("round-robin", max_running=1)
    for client, count in [("a", 3), ("b", 1), ("c", 2)]:
        for _ in range(count):
            server.submit(client, 1, 1)
    for _ in range(6):
        server.step()
    assert order(server) == ["a", "b", "c", "a", "c", "a"]


def test_round_robin_is_unfair_to_short_requests_and_vtc_is_not():
    for spec, low, high in [("round-robin", 5, 15), ("vtc", 0.9, 1.1), ("drr:100", 0.85, 1.15), ("vtc-oracle", 0.95, 1.05)]:
        server = a_server(spec)
        flood(server, 1500, long=(40, 40), short=(4, 4))
        found = service(server)
        assert low <= found["long"] / found["short"] <= high, spec


def test_drr_gives_a_quantum_in_turn_and_collects_debts():
    server = a_server("drr:10", max_running=1)
    for _ in range(6):
        server.submit("big", 10, 5)  # 20 units: a whole quantum of debt
        server.submit("small", 1, 2)  # 5 units: two of them exhaust a quantum
        server.submit("small", 1, 2)
    for _ in range(40):
        server.step()
    assert order(server)[:9] == ["big", "small", "small", "small", "small", "big", "small", "small", "small"]


def test_drr_divides_by_weight():
    server = a_server("drr:50", {"b": 3.0})
    flood(server, 1500, a=(10, 10), b=(10, 10))
    assert service(server)["b"] / service(server)["a"] == pytest.approx(3, rel=0.1)


def test_lcf_serves_who_was_idle_alone_until_it_has_caught_up():
    server = a_server("lcf", max_running=1)
    flood(server, 100, a=(1, 1))
    for _ in range(60):
        server.submit("b", 1, 1)
    flood(server, 60, a=(1, 1))
    assert set(order(server)[100:]) == {"b"}


def test_fcfs_is_in_order_of_arrival_across_clients():
    server = a_server("fcfs", max_running=1)
    clients = list("abacbbac")
    for client in clients:
        server.submit(client, 1, 1)
    for _ in clients:
        server.step()
    assert order(server) == clients


@pytest.mark.parametrize("weight", [0, -1, 0.9e-9, 1.1e9, float("nan"), float("inf")])
@pytest.mark.parametrize("spec", ["vtc", "drr", "vtc-predict", "hierarchy", "vtc-client-adapter"])
def test_a_weight_of_nothing_is_refused(spec, weight):
    with pytest.raises(ConfigError, match=r"'a' is .*allowed: 1e-09 to 1e\+09"):
        a_server(spec, {"a": weight})
    with pytest.raises(ConfigError, match=r"tier 'gold' is .*1e-09 to 1e\+09"):
        create_policy(spec, queues=ClientQueues(), tier_by_client={"a": "gold"}, weight_by_tier={"gold": weight})
    with pytest.raises(ConfigError, match="'a' is 'gold'; known tiers: none"):
        create_policy(spec, queues=ClientQueues(), tier_by_client={"a": "gold"})
