"""One fairness over several servers: VTC whose counters live in Redis, with a stated staleness.

Every server charges its own counters at once and exchanges with Redis every ``sync_s``: it sends what it has charged
since, learns what the others have, and says which clients began or ceased to wait. So a choice is made on counters that
lack at most what the other servers charged in the last ``sync_s`` plus one round trip; with S servers of capacity R
(service per second) the bound of VTC widens by at most (S - 1) R (sync_s + round trip).

Charges add, so their order does not matter. A lift raises a client that waits nowhere yet to the least counter of all
that wait anywhere (or of the last that left); it happens inside the script of the exchange, so it is atomic.

When Redis is away, or answers anything but what was asked for (read-only after a failover, out of memory, a key of
another type, no permission, a counter that is no number), the server goes on with its own counters, and sends everything it
has charged once Redis is well again. Each such exchange is counted, and each new reason is logged. An
exchange whose answer was lost is repeated under its number and applied once: no charge is lost or counted twice. A
Redis that has lost its data is filled again with the counters of the first server that comes back, which may lack what
the others charged in the last ``sync_s`` before the loss. A server that is silent for ``ttl_s`` no longer counts as having
clients waiting. Redis counts in doubles: weights beyond 0.001 and 1000 count as these.

An exchange costs O(clients that this server remembers). Needs the extra ``evenflow[cluster]``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.fairness.books.bill import ticks, units
from evenflow.fairness.books.cost import CostFunction
from evenflow.fairness.books.exchange import Answer, Batch, Store
from evenflow.fairness.books.level import Level
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.books.weights import Weights, weight_lookup
from evenflow.fairness.policies.book_socket import SCHEME, BookSocket
from evenflow.fairness.policies.prediction import LengthPredictor, PredictedVTC
from evenflow.fairness.policies.shared_script import SCRIPT
from evenflow.fairness.registry import PolicySettings, without_secrets
from evenflow.fairness.schedulable import Schedulable

log = logging.getLogger("evenflow.fairness")

LIGHTEST_SHARED, HEAVIEST_SHARED = 1e-3, 1e3
"""Lighter and heavier clients count as these: Redis counts in doubles, which cannot hold a wider range."""


class RedisStore:
    """A Redis, or anything that speaks its protocol and runs Lua. One per server; not for several threads at once."""

    def __init__(
        self, url: str, *, server_id: str, namespace: str = "evenflow", ttl_s: float = 10.0, timeout_s: float = 0.5
    ) -> None:
        """Does not connect yet. Raises ConfigError for an address that is none, or without the package."""
        try:
            import redis
        except ImportError:
            raise ConfigError("sharing counters needs the package redis: pip install 'evenflow[cluster]'") from None
        try:
            self._redis = redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        except ValueError as error:
            raise ConfigError(f"{without_secrets(url)!r} is not the address of a Redis: {error}") from None
        self._script = self._redis.register_script(SCRIPT)
        self._prefix = f"{{{namespace}}}"
        self._server_id = server_id
        self._ttl_s = ttl_s
        self._fault = ""
        self.num_failures = 0
        self.tells_changes = False

    def exchange(self, batch: Batch) -> Answer | None:
        """One script call; a second one if the store has lost this server. Never raises, whatever is answered."""
        try:
            answer = self._call(batch, is_new=False)
            if answer is None:
                answer = self._call(batch, is_new=True)
        except Exception as error:  # no answer, an error as the answer, or one that cannot be read: all the same to us
            self.num_failures += 1
            fault = without_secrets(f"{type(error).__name__}: {error}")
            if fault != self._fault:
                log.warning("the shared counters are away (%s); going on with local ones", fault)
            self._fault = fault
            return None
        if self._fault:
            log.warning("the shared counters are back, after %d exchanges that failed since the start", self.num_failures)
        self._fault = ""
        return answer

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(Exception):  # it may be in any state
            self._redis.close()

    def _call(self, batch: Batch, *, is_new: bool) -> Answer | None:
        content = {
            "charges": list(batch.charges.items()),
            "joined": batch.joined,
            "left": batch.left,
            "known": list(batch.known.items()) if is_new else [],
            "waiting": batch.waiting if is_new else [],
        }
        sent, wanted = json.dumps(content), json.dumps(batch.wanted)
        arguments: list[str | int | float] = [self._server_id, batch.number, self._ttl_s, int(is_new), sent, wanted]
        reply = self._script(keys=[self._prefix], args=arguments)
        if reply[0] == b"unknown":
            return None
        counters = {client: float(value) for client, value in zip(batch.wanted, reply[2:], strict=True) if value is not None}
        answer = Answer(float(reply[1]), counters)
        if not all(map(math.isfinite, (answer.virtual_time, *counters.values()))):
            raise ValueError("a shared counter is not a finite number")
        return answer


class SharedLevel(Level):
    """A Level whose counters are the store's plus what this server has charged since the last exchange."""

    def __init__(self, store: Store, sync_s: float = 0.1, *, in_background: bool = True) -> None:
        super().__init__()
        self._store = store
        self._sync_s = sync_s
        self._pool = ThreadPoolExecutor(1, "shared-counters") if in_background else None
        self._pending: dict[str, int] = {}
        self._announced: set[str] = set()
        self._batch: Batch | None = None
        self._reply: Future[Answer | None] | None = None
        self._last_s = float("-inf")
        self._number = 0
        self._introduces = True

    def shift(self, name: str, received: int, ahead: int, in_advance: int) -> None:
        """Charge here at once, and there with the next exchange: what was received. Charges in advance stay here."""
        super().shift(name, received, ahead, in_advance)
        if received:
            self._pending[name] = self._pending.get(name, 0) + received

    @property
    def num_failures(self) -> int:
        """Exchanges that were not answered, or not well."""
        return self._store.num_failures

    def tick(self, now_s: float) -> None:
        """Take an answer that has come; begin an exchange if it is time. Does not wait, unless made to work in line."""
        if self._reply is not None and self._reply.done():
            self._take(self._reply.result())
        if self._reply is None and now_s - self._last_s >= self._sync_s:
            self._last_s = now_s
            if self._batch is None:
                self._batch = self._next_batch()
            if self._pool is None:
                self._take(self._store.exchange(self._batch))
            else:
                self._reply = self._pool.submit(self._store.exchange, self._batch)

    def close(self) -> None:
        """Stop exchanging. What was not sent is lost to the others."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)  # an exchange may be waiting for a Redis that is away
        self._store.close()

    def _next_batch(self) -> Batch:
        waiting = set(self._waiting)
        self._number += 1
        batch = Batch(
            self._number,
            charges={name: units(amount) for name, amount in self._pending.items()},
            joined=sorted(waiting - self._announced),
            left=sorted(self._announced - waiting),
            introduces=self._introduces,
        )
        self._pending = {}
        self._announced = waiting
        if self._introduces:
            self._introduce(batch)
        return batch

    def _introduce(self, batch: Batch) -> None:
        """Add to ``batch`` what a store needs that has never heard of this server, or has lost it: as of that batch."""
        owed = {name: self._pending.get(name, 0) + ticks(batch.charges.get(name, 0.0)) for name in self._received}
        batch.introduces = True
        batch.wanted = sorted(self._received)
        batch.known = {name: units(received - owed[name]) for name, received in self._received.items()}
        batch.waiting = sorted(self._waiting)
        self._announced = set(self._waiting)

    def _take(self, answer: Answer | None) -> None:
        """Apply an answer; without one the same batch is sent again next time."""
        self._reply = None
        if answer is None:
            return
        if answer.is_unknown:
            assert self._batch is not None, "an answer to nothing"
            self._introduce(self._batch)
            self._last_s = float("-inf")  # at once
            return
        self._introduces = not self._store.tells_changes
        self._batch = None
        for name, counter in answer.counters.items():
            before = self._received.get(name)
            if before is None:
                continue
            now = ticks(counter) + self._pending.get(name, 0)
            self._received[name] = now
            self._counters[name] += now - before
            if now < before:
                for heap in (self._waiting, self._waiting_by_received, self._idle):
                    heap.lowered(name)
        self._virtual_time = max(self._virtual_time, ticks(answer.virtual_time))
        self._advance()


class SharedVTC(PredictedVTC):
    """Predicted VTC on shared counters; its bound, widened as the module says. Close it when the server ends."""

    def __init__(
        self,
        queues: ClientQueues,
        weights: Weights | None = None,
        cost: CostFunction | None = None,
        predictor: LengthPredictor | None = None,
        *,
        store: Store,
        sync_s: float = 0.1,
        in_background: bool = True,
    ) -> None:
        weight_of = weight_lookup(weights)

        def within_range(client_id: str) -> float:
            return min(max(weight_of(client_id), LIGHTEST_SHARED), HEAVIEST_SHARED)

        self._shared = SharedLevel(store, sync_s, in_background=in_background)
        super().__init__(queues, within_range, cost, predictor, self._shared)

    @classmethod
    def from_settings(cls, settings: PolicySettings, argument: str | None) -> SharedVTC:
        """``vtc-shared:redis://HOST:PORT/DB``, or ``vtc-shared:book:///FILE`` for a socket in front of a book."""
        if not argument or "://" not in argument:
            shown = None if argument is None else without_secrets(argument)
            raise RegistryError(f"vtc-shared takes the address of a Redis, redis://HOST:PORT/DB, got {shown!r}")
        server_id = f"{socket.gethostname()}:{os.getpid()}:{id(settings.queues):x}"
        store: Store
        if argument.startswith(SCHEME):
            store = BookSocket(Path(argument.removeprefix(SCHEME)), server_id=server_id)
        else:
            store = RedisStore(argument, server_id=server_id)
        return cls(settings.queues, settings.weights, settings.cost, store=store)

    def pick(self, now_s: float) -> Schedulable | None:
        """Exchange if it is time, then as VTC."""
        self._shared.tick(now_s)
        return super().pick(now_s)

    @property
    def num_failed_exchanges(self) -> int:
        """How often the shared counters were away, since the start."""
        return self._shared.num_failures

    def close(self) -> None:
        """Give the connection back."""
        self._shared.close()
