"""Windows, queues and waits against a clock of our own and against brute force."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.access.identity import Client
from evenflow.base.errors import ClientOverLimit, ServerFull
from evenflow.serving.client.messages import ClientStats, EngineStats
from evenflow.serving.server.access.limits import LONGEST_WAIT_S, WINDOW_S, Limits, SlidingWindow, format_duration


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def make(max_queue: int = 100, stats: EngineStats | None = None) -> tuple[Limits, Clock]:
    clock = Clock()
    snapshot = stats or EngineStats()
    return Limits(max_queue, lambda: snapshot, clock), clock


@settings(max_examples=200, deadline=None)
@given(
    limit=st.integers(1, 40),
    steps=st.lists(
        st.tuples(st.one_of(st.just(0.0), st.floats(0.01, 1.0), st.floats(5.0, 70.0)), st.integers(1, 45)), max_size=60
    ),
)
def test_no_minute_ever_holds_more_than_the_limit(limit, steps):
    window, now_s = SlidingWindow(limit), 0.0
    entered: list[tuple[float, int]] = []
    for pause_s, amount in steps:
        now_s += pause_s
        wait_s = window.wait_s(now_s, amount)
        window.check_integrity()
        held = sum(size for at_s, size in entered if at_s + WINDOW_S > now_s)
        assert window.used(now_s) >= held
        if wait_s == 0:
            window.add(now_s, amount)
            entered.append((now_s, amount))
        elif amount > limit:
            assert wait_s == math.inf
        else:
            assert window.wait_s(now_s + wait_s + 1e-9, amount) == 0, "after the wait it fits"
            return
        window.check_integrity()
    for start_s, _ in entered:
        assert sum(size for at_s, size in entered if start_s <= at_s < start_s + WINDOW_S) <= limit


def test_requests_per_minute():
    limits, clock = make()
    alice = Client("alice", requests_per_minute=3)
    for _ in range(3):
        with limits.admit(alice, 1):
            clock.now_s += 10
    with pytest.raises(ClientOverLimit, match="3 requests per minute") as caught:
        limits.admit(alice, 1)
    assert caught.value.retry_after_s == pytest.approx(30)
    assert limits.headers(alice)["x-ratelimit-remaining-requests"] == "0"
    clock.now_s += 30
    with limits.admit(alice, 1):
        pass
    limits.check_integrity()


def test_a_refused_request_is_not_counted():
    limits, clock = make()
    alice = Client("alice", requests_per_minute=1)
    with limits.admit(alice, 1):
        pass
    for _ in range(50):
        clock.now_s += 1
        with pytest.raises(ClientOverLimit):
            limits.admit(alice, 1)
    clock.now_s += 10
    with limits.admit(alice, 1):
        pass


def test_tokens_per_minute_count_prompt_and_output():
    limits, clock = make()
    alice = Client("alice", tokens_per_minute=100)
    with limits.admit(alice, 1) as ticket:
        ticket.charge_prompt(60)
        ticket.started()
        for _ in range(5):
            ticket.charge_output(10)  # what has begun may end, over the limit too
    assert limits.headers(alice)["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(ClientOverLimit, match="100 tokens per minute"):
        limits.admit(alice, 1)
    clock.now_s += 60
    assert limits.headers(alice)["x-ratelimit-remaining-tokens"] == "100"
    with limits.admit(alice, 1) as ticket, pytest.raises(ClientOverLimit) as caught:
        ticket.charge_prompt(101)
    assert caught.value.retry_after_s == math.inf
    limits.check_integrity()


def test_queue_bounds_of_a_client_and_of_all():
    limits, _ = make(max_queue=5)
    alice, bob = Client("alice", max_queued_requests=3), Client("bob")
    first = limits.admit(alice, 2)
    with pytest.raises(ClientOverLimit, match="2 requests waiting"):
        limits.admit(alice, 2)
    with pytest.raises(ClientOverLimit) as never:
        limits.admit(alice, 4)
    assert never.value.retry_after_s == math.inf
    second = limits.admit(bob, 3)
    with pytest.raises(ServerFull, match="its limit is 5"):
        limits.admit(bob, 1)
    first.started()
    with limits.admit(bob, 1):
        pass
    for ticket in (first, second):
        ticket.__exit__(None, None, None)
        ticket.__exit__(None, None, None)
    assert limits.num_waiting == 0
    limits.check_integrity()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(0, 4)), max_size=40))
def test_places_are_given_back_whatever_happens(rounds):
    limits, clock = make(max_queue=8)
    clients = [Client("a", max_queued_requests=4), Client("b"), Client("c", requests_per_minute=5), Client("d")]
    held = []
    for who, num, num_started in rounds:
        clock.now_s += 1
        try:
            ticket = limits.admit(clients[who], num)
        except (ClientOverLimit, ServerFull):
            limits.check_integrity()
            if held:
                held.pop(0).__exit__(None, None, None)
            continue
        for _ in range(min(num, num_started)):
            ticket.started()
        held.append(ticket)
        limits.check_integrity()
        assert limits.num_waiting <= 8
    for ticket in held:
        ticket.__exit__(None, None, None)
        limits.check_integrity()
    assert limits.num_waiting == 0


def test_the_predicted_wait_is_the_formula():
    stats = EngineStats(tokens_per_s=200.0, clients={"bob": ClientStats(num_waiting=5, weight=3.0), "eve": ClientStats()})
    limits, _ = make(max_queue=40, stats=stats)
    assert limits.predicted_wait_s(10) == 1.0, "nothing has been measured yet"
    limits.completed(50)
    assert limits.predicted_wait_s(20) == pytest.approx(20 * 50 / 200)
    assert limits.predicted_wait_s(20, 0.25) == pytest.approx(4 * 20 * 50 / 200)
    assert limits.predicted_wait_s(1e9) == LONGEST_WAIT_S
    ticket = limits.admit(Client("bob"), 40)
    with pytest.raises(ServerFull) as full:
        limits.admit(Client("bob"), 1)
    assert full.value.retry_after_s == pytest.approx(20 * 50 / 200), "half of the queue"
    ticket.__exit__(None, None, None)
    alice = Client("alice", max_queued_requests=10)
    ticket = limits.admit(alice, 10)
    with pytest.raises(ClientOverLimit) as over:
        limits.admit(alice, 1)
    assert over.value.retry_after_s == pytest.approx(5 * 50 / (200 * 1 / 4)), "half of her queue at her share beside bob"
    ticket.__exit__(None, None, None)


def test_new_limits_apply_to_old_accounts():
    limits, _ = make()
    with limits.admit(Client("alice", requests_per_minute=10), 1) as ticket:
        with pytest.raises(ClientOverLimit):
            limits.admit(Client("alice", requests_per_minute=1, tokens_per_minute=5), 1)
        ticket.charge_output(7)
        with pytest.raises(ClientOverLimit, match="5 tokens"):
            limits.admit(Client("alice", tokens_per_minute=5), 1)
    limits.check_integrity()


def test_idle_clients_take_no_memory():
    limits, _ = make()
    for number in range(100):
        with limits.admit(Client(f"c{number}"), 1) as ticket:
            ticket.started()
            ticket.charge_output(3)
    assert limits._accounts == {}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (59.5, "59.5s"), (60, "1m0s"), (360.2, "6m1s")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
