"""Shared counters in memory: the same rules as Redis' script, charges applied once, and the stated staleness."""

from __future__ import annotations

import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.fairness import ClientQueues
from evenflow.fairness.books.counter_book import CounterBook
from evenflow.fairness.books.exchange import Answer, Batch
from evenflow.fairness.policies.shared import RedisStore, SharedVTC
from evenflow.fairness.toy_server import ToyServer


class BookStore:
    """A book as a store that can be away: before the exchange (``is_away``) or after it (``loses_answers``)."""

    tells_changes = True

    def __init__(self, book: CounterBook, server: str, clock) -> None:
        self.book, self.server, self.clock = book, server, clock
        self.is_away = self.loses_answers = False
        self.num_failures = 0

    def exchange(self, batch: Batch) -> Answer | None:
        answer = None if self.is_away else self.book.exchange(self.server, batch, self.clock())
        if self.is_away or self.loses_answers:
            self.num_failures += 1
            return None
        return answer

    def close(self) -> None:
        pass


class Cluster:
    """Toy servers on one book and one virtual clock: a step a second."""

    def __init__(self, num_servers: int, weights=None, sync_s: float = 1.0, memory_tokens: int = 400) -> None:
        self.now_s = 0.0
        self.book = CounterBook()
        self.stores = [BookStore(self.book, f"s{i}", lambda: self.now_s) for i in range(num_servers)]
        self.servers: list[ToyServer] = []
        self.levels = []
        for store in self.stores:
            queues = ClientQueues()
            policy = SharedVTC(queues, weights, store=store, sync_s=sync_s, in_background=False)
            self.servers.append(ToyServer(policy, queues, memory_tokens))
            self.levels.append(policy._shared)

    def step(self) -> None:
        self.now_s += 1.0
        for server in self.servers:
            server.step()
        self.book.check_integrity()

    def service(self, client: str) -> float:
        return sum(sum(server.service.costs.get(client, [0.0])) for server in self.servers)


def test_shares_hold_whatever_the_fronts_send_where():
    """Dynamo's case: weights 4 to 1 behind two front ends became 1 to 1, because each levelled its own clients only."""
    cluster = Cluster(2, {"heavy": 4.0, "light": 1.0})
    for _ in range(500):
        for server, clients in zip(cluster.servers, (("heavy", "light"), ("light",)), strict=True):
            for client in clients:
                while server.queues.num_waiting(client) < 60:
                    server.submit(client, 10, 10)
        if cluster.now_s % 5 < 3:  # 1.2 of the 2 requests a second that the second can serve
            for _ in range(2):
                cluster.servers[1].submit("heavy", 10, 10)
        cluster.step()
    assert cluster.service("heavy") / cluster.service("light") == pytest.approx(4.0, rel=0.1)


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 5), st.integers(1, 12), st.randoms(use_true_random=False))
def test_counters_lack_at_most_what_others_charged_since_the_last_exchange(num_servers, sync_s, rng):
    """The staleness bound: (S - 1) servers, each with what it can serve in ``sync_s`` and the step of its exchange."""
    cluster = Cluster(num_servers, sync_s=float(sync_s), memory_tokens=200)
    most_per_s = 200 * 2 + 10 * 30.0  # 2 a token for all that fit, and the prompts that may start in one step
    for _ in range(80):
        for server in cluster.servers:
            for client in "abc":
                while server.queues.num_waiting(client) < 30:
                    server.submit(client, rng.randint(5, 30), rng.randint(5, 30))
        cluster.step()
        truth = {client: cluster.service(client) for client in "abc"}
        for level in cluster.levels:
            for client in "abc":
                behind = truth[client] - level._received.get(client, 0) / level_scale()
                assert behind <= (num_servers - 1) * most_per_s * (sync_s + 1) + 1e-6


def level_scale() -> float:
    from evenflow.fairness.books.bill import TICKS_PER_UNIT

    return TICKS_PER_UNIT


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_nothing_is_lost_or_counted_twice_whatever_is_away(rng):
    """Stores that are away, answers that are lost, and a book that forgets everything: counters are the service had.

    Everybody waits throughout, so nobody is lifted.
    """
    cluster = Cluster(3, sync_s=1.0)
    for server in cluster.servers:
        for client in "ab":
            for _ in range(60):
                server.submit(client, rng.randint(1, 30), rng.randint(1, 30))
    for _ in range(25):
        for store in cluster.stores:
            store.is_away, store.loses_answers = rng.random() < 0.3, rng.random() < 0.3
        cluster.step()
    for store in cluster.stores:
        store.is_away = store.loses_answers = False
    for _ in range(3):  # exchanges without further service
        cluster.now_s += 2
        for level in cluster.levels:
            level.tick(cluster.now_s)
    assert cluster.book.counters() == pytest.approx({c: cluster.service(c) for c in "ab"}, abs=1e-6)


def test_a_book_that_was_lost_is_filled_again():
    cluster = Cluster(2, {"a": 3.0})
    for step in range(300):
        if step == 100:
            cluster.book = CounterBook()
            for store in cluster.stores:
                store.book = cluster.book
        for server in cluster.servers:
            for client in "ab":
                while server.queues.num_waiting(client) < 60:
                    server.submit(client, 10, 10)
        cluster.step()
    assert cluster.service("a") / cluster.service("b") == pytest.approx(3.0, rel=0.1)
    counters = cluster.book.counters()
    assert counters["b"] == pytest.approx(cluster.service("b"), rel=0.1)


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
@pytest.mark.multiprocess
def test_the_book_follows_the_rules_of_the_script():
    """The same random batches to both: the same counters and virtual time."""
    from test_shared_counters import Redis

    redis = Redis()
    try:
        rng = random.Random(5)
        book, stores = CounterBook(), {s: RedisStore(redis.url, server_id=s, timeout_s=5.0) for s in "xyz"}
        waiting: dict[str, set[str]] = {s: set() for s in "xyz"}
        for number in range(1, 120):
            server = rng.choice("xyz")
            flipped = {c for c in "abcdef" if rng.random() < 0.2}
            joined, left = flipped - waiting[server], flipped & waiting[server]
            waiting[server] ^= flipped
            batch = Batch(
                number,
                {c: float(rng.randint(1, 50)) for c in "abcdef" if c in waiting[server]},
                sorted(joined),
                sorted(left),
                list("abcdef"),
                {},
                sorted(waiting[server]),
            )
            ours, theirs = book.exchange(server, batch, 0.0), stores[server].exchange(batch)
            book.check_integrity()
            assert theirs is not None
            assert ours.virtual_time == pytest.approx(theirs.virtual_time)
            assert book.counters() == pytest.approx(theirs.counters)
        for store in stores.values():
            store.close()
    finally:
        redis.stop()
