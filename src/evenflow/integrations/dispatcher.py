"""Who may ask a backend next, when it can do ``limit`` requests at once: a policy's order, on one event loop.

Knows no HTTP. What runs is never stopped: the bound is the policy's, with M the tokens of ``limit`` requests.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from evenflow.base.errors import ConfigError, Rejected
from evenflow.fairness.books.cost import Service
from evenflow.fairness.books.live_shares import LiveShares
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.registry import create_policy


@dataclass(slots=True, eq=False)
class Ticket:
    """A request as a policy sees it."""

    request_id: int
    client_id: str
    adapter: str | None
    num_prompt_tokens: int
    max_output_tokens: int
    arrival_s: float
    num_output_tokens: int = 0
    known_output_tokens: int | None = None
    is_complete: bool = False
    place: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Done when it may start."""


class FairDispatcher:
    """Lets ``limit`` requests run at once, in the order of ``policy``. For one event loop; owns the policy and its queues."""

    def __init__(
        self,
        limit: int,
        policy: str = "vtc",
        *,
        shares: LiveShares | None = None,
        most_waiting: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``most_waiting``: requests beyond it are refused. Raises ConfigError or RegistryError for what makes no sense."""
        if limit < 1 or most_waiting < 1:
            raise ConfigError(f"limit is {limit} and most_waiting {most_waiting}; allowed: 1 or more")
        self.shares = shares or LiveShares({}, {}, {})
        self._queues = ClientQueues()
        self._policy = create_policy(
            policy,
            queues=self._queues,
            weights=self.shares.weight_by_client,
            tier_by_client=self.shares.tier_by_client,
            weight_by_tier=self.shares.weight_by_tier,
        )
        self._limit = limit
        self._most_waiting = most_waiting
        self._clock = clock
        self._ids = itertools.count()
        self._running: dict[int, Ticket] = {}

    @asynccontextmanager
    async def turn(
        self, client_id: str, num_prompt_tokens: int, max_output_tokens: int = 512, adapter: str | None = None
    ) -> AsyncIterator[Callable[[int], None]]:
        """Wait for a place; give it back at the end, however that comes. Call the value with each number of tokens produced.

        Raises Rejected if the policy refuses the request or too many wait.
        """
        ticket = await self.enter(client_id, num_prompt_tokens, max_output_tokens, adapter)
        try:
            yield lambda num_tokens: self.produced(ticket, num_tokens)
            ticket.is_complete = True
        finally:
            self.leave(ticket)

    def shares_changed(self) -> None:
        """Weights or tiers are others now."""
        self._policy.shares_changed()

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place."""
        return self._queues.num_waiting()

    @property
    def num_running(self) -> int:
        """Requests that have one."""
        return len(self._running)

    def check_integrity(self) -> None:
        """Assert that no place is empty while somebody may start, and the policy's books. For tests."""
        self._queues.check_integrity()
        self._policy.check_integrity(set(self._queues.clients))
        assert len(self._running) <= self._limit
        is_full = len(self._running) == self._limit
        assert is_full or self._policy.pick(self._clock()) is None, "a place is empty and somebody waits"

    async def enter(
        self, client_id: str, num_prompt_tokens: int, max_output_tokens: int = 512, adapter: str | None = None
    ) -> Ticket:
        """Wait for a place: ``leave`` gives it back. Who is cancelled while waiting has none. Raises Rejected."""
        now_s = self._clock()
        if self.num_waiting >= self._most_waiting:
            raise Rejected(f"{self.num_waiting} requests wait already", retry_after_s=5.0)
        ticket = Ticket(next(self._ids), client_id, adapter, num_prompt_tokens, max_output_tokens, now_s)
        verdict = self._policy.arrive(ticket, now_s)
        if not verdict.is_accepted:
            raise Rejected(verdict.reason, verdict.retry_after_s)
        if self._queues.push(ticket):
            self._policy.backlogged(client_id)
        self._start_all()
        try:
            await ticket.place
        except BaseException:  # the caller has gone
            if ticket.request_id in self._running:
                self.leave(ticket)
            else:
                is_last = self._queues.remove(ticket)
                self._policy.cancelled(ticket)
                if is_last:
                    self._policy.emptied(client_id)
            raise
        return ticket

    def produced(self, ticket: Ticket, num_tokens: int) -> None:
        """The answer has so many tokens more."""
        ticket.num_output_tokens += num_tokens
        self._policy.charge(ticket, Service(decode_tokens=num_tokens))

    def leave(self, ticket: Ticket) -> None:
        """Give the place to whoever is next."""
        del self._running[ticket.request_id]
        self._policy.settle(ticket)
        self._start_all()

    def _start_all(self) -> None:
        while len(self._running) < self._limit:
            picked = self._policy.pick(self._clock())
            if picked is None:
                return
            assert isinstance(picked, Ticket)
            is_last = self._queues.remove(picked)
            self._policy.admitted(picked, Service(prefill_tokens=picked.num_prompt_tokens))
            if is_last:
                self._policy.emptied(picked.client_id)
            self._running[picked.request_id] = picked
            self._policy.charge(picked, Service(prefill_tokens=picked.num_prompt_tokens))
            if not picked.place.done():
                picked.place.set_result(None)
