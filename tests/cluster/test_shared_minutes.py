"""Limits per minute over several fronts: counted once, heard by all, and how far a client can go beyond its limit."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.access.identity import Client
from evenflow.base.errors import ClientOverLimit
from evenflow.cluster.minute_log import MinuteLog
from evenflow.serving.client.messages import EngineStats
from evenflow.serving.server.access.limits import Limits


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 4), st.sampled_from([0.2, 0.5, 1.0]), st.booleans(), st.integers(0, 1 << 30))
def test_a_client_goes_beyond_its_limit_by_what_the_others_let_in_between_two_exchanges(num_fronts, sync_s, is_lossy, seed):
    now_s, rng = 0.0, random.Random(seed)
    log, limit, per_exchange = MinuteLog(), 60, 8
    fronts = [Limits(10_000, EngineStats, lambda: now_s) for _ in range(num_fronts)]
    for front in fronts:
        front.share_minutes()
    client = Client("c", requests_per_minute=limit)
    let_in: list[float] = []
    numbers, unsent = [0] * num_fronts, [{} for _ in fronts]
    for _ in range(int(130 / sync_s)):
        now_s += sync_s
        for i, front in enumerate(fronts):
            for _ in range(rng.randint(0, per_exchange)):
                with contextlib.suppress(ClientOverLimit), front.admit(client, 1) as ticket:
                    ticket.started()
                    let_in.append(now_s)
            if not unsent[i]:
                unsent[i], numbers[i] = front.take_untold(), numbers[i] + 1
            heard = log.exchange(f"f{i}", numbers[i], unsent[i], now_s)
            if not is_lossy or rng.random() < 0.9:  # else the answer is lost, and the exchange repeated
                front.heard(heard)
                unsent[i] = {}
            front.check_integrity()
        in_a_minute = sum(now_s - 60 < at for at in let_in)
        assert in_a_minute <= limit + (num_fronts - 1) * per_exchange * (10 if is_lossy else 1)
    assert len(let_in) >= limit


def test_nothing_is_heard_twice_or_by_whoever_said_it():
    log = MinuteLog()
    assert log.exchange("a", 1, {("c", "requests"): 3}, 0.0) == {}
    assert log.exchange("b", 1, {("c", "requests"): 2}, 0.1) == {("c", "requests"): 3}
    assert log.exchange("b", 1, {("c", "requests"): 2}, 0.2) == {("c", "requests"): 3}, "its answer was lost"
    assert log.exchange("b", 2, {}, 0.3) == {}
    assert log.exchange("a", 2, {("c", "requests"): -1}, 0.4) == {("c", "requests"): 2}
    assert log.exchange("b", 3, {}, 0.5) == {("c", "requests"): -1}
    assert log.exchange("late", 1, {}, 30.0) == {("c", "requests"): 4}, "one that has just started hears the last minute"
    assert log.exchange("later", 1, {}, 61.0) == {}


def test_a_client_that_was_elsewhere_first_is_known():
    now_s = 0.0
    front = Limits(100, EngineStats, lambda: now_s)
    front.heard({("c", "requests"): 2, ("c", "tokens"): 100})
    client = Client("c", requests_per_minute=2, tokens_per_minute=1000)
    with pytest.raises(ClientOverLimit) as refused:
        front.admit(client, 1)
    assert refused.value.retry_after_s == 60.0
    assert front.headers(client)["x-ratelimit-remaining-tokens"] == "900"
    now_s = 61.0
    with front.admit(client, 1) as ticket:
        ticket.started()
