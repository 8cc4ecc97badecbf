"""Counters shared through a real Redis: one fairness over two servers, exact books, and what happens when Redis goes away."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.fairness import ClientQueues, create_policy, without_secrets
from evenflow.fairness.books.exchange import Batch
from evenflow.fairness.policies.shared import RedisStore, SharedVTC
from evenflow.fairness.toy_server import ToyServer

pytestmark = [
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed"),
    pytest.mark.multiprocess,
]
NAMES = itertools.count()


class Redis:
    """A redis-server of our own that can be stopped and started again."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError("redis-server did not start")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def redis():
    server = Redis()
    yield server
    server.stop()


@pytest.fixture
def own_redis():
    server = Redis()
    yield server
    server.stop()


def a_server(redis, namespace, server_id, weights=None, sync_s=1.0, memory_tokens=400, timeout_s=5.0):
    queues = ClientQueues()
    store = RedisStore(redis.url, server_id=server_id, namespace=namespace, timeout_s=timeout_s)
    policy = SharedVTC(queues, weights, store=store, sync_s=sync_s, in_background=False)
    return ToyServer(policy, queues, memory_tokens)


def service(*servers):
    total = {}
    for server in servers:
        for client, costs in server.service.costs.items():
            total[client] = total.get(client, 0.0) + sum(costs)
    return total


def skewed_ingress(servers, steps=1000):
    """Both clients backlogged on the first; on the second the light one backlogged, the heavy one at 0.6 of its capacity."""
    first, second = servers
    rng = random.Random(0)
    capacity = 400 / 20  # requests of 10 + 10 tokens at once, each for 10 s: two per second
    for step in range(steps):
        for client in ("heavy", "light"):
            while first.queues.num_waiting(client) < 60:
                first.submit(client, 10, 10)
        while second.queues.num_waiting("light") < 60:
            second.submit("light", 10, 10)
        for _ in range(2):
            if rng.random() < 0.6 * capacity / 20:
                second.submit("heavy", 10, 10)
        first.step()
        second.step()
        if step % 100 == 0:
            first.check_integrity()
            second.check_integrity()


def test_two_servers_and_skewed_ingress_share_as_one(redis):
    weights = {"heavy": 4.0, "light": 1.0}
    local = []
    for _ in range(2):
        queues = ClientQueues()
        local.append(ToyServer(create_policy("vtc-predict", queues=queues, weights=weights), queues, 400))
    skewed_ingress(local)
    found = service(*local)
    assert found["heavy"] / found["light"] == pytest.approx(2.33, rel=0.15)
    shared = [a_server(redis, "skew", f"s{i}", weights) for i in range(2)]
    skewed_ingress(shared)
    found = service(*shared)
    assert found["heavy"] / found["light"] == pytest.approx(4.0, rel=0.1)


def counters_in(redis, namespace):
    import redis as package

    with package.Redis.from_url(redis.url) as client:
        return {k.decode(): float(v) for k, v in client.hgetall(f"{{{namespace}}}:counters").items()}


def drain(*servers):
    for server in servers:
        while server.running or server.queues.num_clients:
            server.step()
            server.check_integrity()
        level = server.policy._shared
        for _ in range(200):
            server.now_s += 10
            server.policy.pick(server.now_s)
            if level._batch is None and not level._pending:
                break


@pytest.mark.parametrize("is_silent", [False, True])
def test_no_charge_is_lost_or_counted_twice(own_redis, is_silent):
    """All clients wait from the start to nearly the end, so nobody is lifted: counters are service.

    A Redis that is stopped takes requests and answers none; when it goes on it carries out what it took, and gets it again.
    """
    servers = [a_server(own_redis, "exact", f"s{i}", sync_s=3.0, timeout_s=0.1) for i in range(2)]
    rng = random.Random(1)
    for server in servers:
        for client in "abc":
            for _ in range(12):
                server.submit(client, rng.randint(1, 30), rng.randint(1, 30))
    for step in range(30):
        if is_silent and step == 10:
            own_redis.process.send_signal(signal.SIGSTOP)
        if is_silent and step == 22:
            own_redis.process.send_signal(signal.SIGCONT)
        for server in servers:
            server.step()
            server.check_integrity()
    drain(*servers)
    assert counters_in(own_redis, "exact") == pytest.approx(service(*servers), abs=1e-6)


def test_a_repeated_exchange_is_applied_once(redis):
    store = RedisStore(redis.url, server_id="s", namespace="twice", timeout_s=5.0)
    batch = Batch(1, charges={"a": 5.0}, joined=["a"], wanted=["a"], known={"a": 0.0}, waiting=["a"])
    assert store.exchange(batch).counters == {"a": 5.0}
    assert store.exchange(batch).counters == {"a": 5.0}
    assert store.exchange(Batch(2, charges={"a": 2.0}, wanted=["a", "b"])).counters == {"a": 7.0}
    store.close()


def test_a_lift_takes_the_least_of_all_servers_and_only_once(redis):
    one, two = (RedisStore(redis.url, server_id=s, namespace="lift", timeout_s=5.0) for s in "12")
    two.exchange(Batch(1, waiting=["b"], known={"b": 40.0}))
    one.exchange(Batch(1, waiting=["a"], known={"a": 100.0}))
    assert one.exchange(Batch(2, joined=["c"], wanted=["c"])).counters == {"c": 40.0}
    two.exchange(Batch(2, charges={"b": 500.0}))
    assert two.exchange(Batch(3, joined=["c"], wanted=["c"])).counters == {"c": 40.0}, "it waits elsewhere: it was not idle"
    two.exchange(Batch(4, left=["b", "c"]))
    last = one.exchange(Batch(3, charges={"a": 900.0}, left=["c", "a"]))
    assert last.virtual_time == 1000.0
    assert two.exchange(Batch(5, joined=["d"], wanted=["d"])).counters == {"d": 1000.0}, "nobody waits: the last that left"
    for store in (one, two):
        store.close()


def test_a_server_that_died_holds_nobody_back(redis):
    dead = RedisStore(redis.url, server_id="dead", namespace="ttl", ttl_s=0.2, timeout_s=5.0)
    dead.exchange(Batch(1, waiting=["old"], known={"old": 3.0}))
    alive = RedisStore(redis.url, server_id="alive", namespace="ttl", ttl_s=0.2, timeout_s=5.0)
    alive.exchange(Batch(1, waiting=["a"], known={"a": 50.0}))
    assert alive.exchange(Batch(2, joined=["b"], wanted=["b"])).counters == {"b": 3.0}
    time.sleep(0.3)
    assert alive.exchange(Batch(3, joined=["c"], wanted=["c"])).counters == {"c": 3.0}
    alive.exchange(Batch(4, left=["b", "c"]))
    assert alive.exchange(Batch(5, joined=["d"], wanted=["d"])).counters == {"d": 50.0}
    for store in (dead, alive):
        store.close()


def test_local_counters_carry_on_while_redis_is_away(own_redis):
    server = a_server(own_redis, "away", "s", {"a": 3.0})
    for step in range(600):
        if step == 100:
            own_redis.stop()
        for client in "ab":
            while server.queues.num_waiting(client) < 60:
                server.submit(client, 10, 10)
        server.step()
    server.check_integrity()
    found = service(server)
    assert found["a"] / found["b"] == pytest.approx(3, rel=0.1)
    own_redis.start()
    before = dict(server.policy.counters())
    server.step()
    server.step()
    kept = counters_in(own_redis, "away")
    assert kept["a"] == pytest.approx(before["a"], rel=0.05)
    assert kept["b"] == pytest.approx(before["b"], rel=0.05)


def test_in_the_background_nothing_waits_for_redis(own_redis):
    queues = ClientQueues()
    policy = SharedVTC(queues, store=RedisStore(own_redis.url, server_id="s", timeout_s=5.0), sync_s=0.0)
    server = ToyServer(policy, queues, 400)
    for client in "ab":
        for _ in range(20):
            server.submit(client, 10, 10)
    for step in range(60):
        if step == 30:
            own_redis.stop()
        server.step()
        server.check_integrity()
    assert all(r.is_complete for r in server.requests)
    policy.close()


READ_ONLY = ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE")
OUT_OF_MEMORY = ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0")
NO_PERMISSION = ("ACL SETUSER default -@all +acl +auth", "ACL SETUSER default +@all")
WRONG_TYPE = ("SET {ill}:servers x", "DEL {ill}:servers")
SCRIPTS_LOST = ("SCRIPT FLUSH", "PING")


@pytest.mark.parametrize(
    ("harm", "cure", "says"),
    [
        (*READ_ONLY, "read.?only"),
        (*OUT_OF_MEMORY, "maxmemory"),
        (*NO_PERMISSION, "perm"),
        (*WRONG_TYPE, "WRONGTYPE"),
        (*SCRIPTS_LOST, None),
    ],
)
def test_a_redis_that_answers_badly_counts_as_away(own_redis, caplog, harm, cure, says):
    """The server serves on, fairly, says once what is wrong, counts it, and nothing is lost when Redis is well again."""
    import redis as package

    server = a_server(own_redis, "ill", "s", {"a": 3.0}, sync_s=0.0)
    with caplog.at_level(logging.WARNING, "evenflow.fairness"), package.Redis.from_url(own_redis.url) as admin:
        for step in range(400):
            if step == 100:
                admin.execute_command(*harm.split())
            if step == 300:
                admin.execute_command(*cure.split())
            for client in "ab":
                while server.queues.num_waiting(client) < 60:
                    server.submit(client, 10, 10)
            server.step()
            server.check_integrity()
    found = service(server)
    assert found["a"] / found["b"] == pytest.approx(3, rel=0.1)
    warnings = [record.getMessage() for record in caplog.records]
    if says is None:
        assert (server.policy.num_failed_exchanges, warnings) == (0, [])
    else:
        assert server.policy.num_failed_exchanges >= 100
        assert len(warnings) == 2, warnings
        assert re.search(says, warnings[0], re.IGNORECASE)
        assert "back" in warnings[1]
    before = dict(server.policy.counters())
    assert counters_in(own_redis, "ill") == pytest.approx(before, rel=0.05)


def test_counters_that_are_no_numbers_are_replaced(redis):
    import redis as package

    store = RedisStore(redis.url, server_id="s", namespace="nan", timeout_s=5.0)
    store.exchange(Batch(1, waiting=["a", "b"], known={"a": 3.0, "b": 5.0}))
    with package.Redis.from_url(redis.url) as admin:
        for number, broken in enumerate(("nan", "-nan", "inf", "1e999", "many", ""), 2):
            admin.hset("{nan}:counters", "a", broken)
            admin.set("{nan}:v", broken)
            answer = store.exchange(Batch(number, charges={"a": 1.0}, wanted=["a", "b"]))
            assert answer is not None
            assert answer.counters["b"] == 5.0
            assert math.isfinite(answer.counters["a"])
            assert math.isfinite(answer.virtual_time)
    assert store.num_failures == 0
    store.close()


class TalksNonsense(threading.Thread):
    """A server that accepts anything and answers with ``words``."""

    def __init__(self, words: bytes) -> None:
        super().__init__(daemon=True)
        self._words = words
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://:secret@127.0.0.1:{self._listener.getsockname()[1]}/0"
        self.start()

    def run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(OSError):
                while connection.recv(65536):
                    connection.sendall(self._words)


@pytest.mark.parametrize(
    "words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*1\r\n$2\r\nok\r\n", b"$-1\r\n", b"-ERR \xff\r\n", b":7\r\n"]
)
def test_what_is_no_redis_counts_as_away_too(words, caplog):
    store = RedisStore(TalksNonsense(words).url, server_id="s", timeout_s=0.2)
    with caplog.at_level(logging.WARNING, "evenflow.fairness"):
        assert store.exchange(Batch(1, charges={"a": 1.0}, wanted=["a"])) is None
    assert store.num_failures == 1
    assert "away" in caplog.text
    assert "secret" not in caplog.text
    store.close()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("vtc-shared:redis://user:p@ss/w?rd@host:6379/0", "vtc-shared:redis://***@host:6379/0"),
        ("cluster:8+vtc-shared:rediss://:secret@host", "cluster:8+vtc-shared:rediss://***@host"),
        ("vtc-shared:redis://host/0?password=secret", "vtc-shared:redis://host/0?***"),
        ("vtc-shared:unix://:secret@/run/redis.sock?db=1", "vtc-shared:unix://***@/run/redis.sock?***"),
        ("vtc-shared:redis://host:6379/0", "vtc-shared:redis://host:6379/0"),
        ("rpm:20", "rpm:20"),
    ],
)
def test_a_policy_is_shown_without_the_password_in_its_name(name, shown):
    assert without_secrets(name) == shown


def test_what_is_refused():
    for spec in ("vtc-shared:ftp://:secret@x", "cluster:8 vtc-shared:redis://:secret@x", "cluster:8+"):
        with pytest.raises((ConfigError, RegistryError)) as caught:
            create_policy(spec, queues=ClientQueues())
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="'ftp://x' is not the address"):
        RedisStore("ftp://x", server_id="s")
