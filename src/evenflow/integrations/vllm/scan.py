"""Whose turn it is within one scheduling step, when some of those who are due cannot start now.

A scheduler that cannot start the next request (its adapter finds no LoRA slot, its grammar is still being compiled)
goes on to another. The request that was passed over goes on waiting, so its client keeps its place: nothing is
charged, nobody is lifted. In its place comes the request whose client is least ahead of it, by the policy's own
accounts.

What is passed over for want of a LoRA slot is passed over within a bound only: by requests of clients that are ahead
of it by at most ``overtaking`` units of service. When nobody else may pass, nothing starts until a slot is free. With
counters of waiting clients within U under VTC they then stay within U + overtaking: the proof of lemma 4.3 holds with
an admitted counter of at most the least + overtaking. A policy without accounts says that nobody is ahead, and
nothing is bounded.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping

from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.policy import Policy
from evenflow.integrations.vllm.life import Life


class Scan:
    """One scan of those that wait. Passing over costs O(log clients), and O(clients) once after each request that starts."""

    def __init__(
        self, policy: Policy, queues: ClientQueues, lives: Mapping[Hashable, Life], now_s: float, overtaking: float
    ) -> None:
        self._policy = policy
        self._queues = queues
        self._lives = lives
        self._now_s = now_s
        self._overtaking = overtaking
        self._passed: set[Hashable] = set()
        self._full_adapters: set[str] = set()
        """Adapters that found no slot. Slots are only taken during a scan, so none of them can find one in it."""
        self._without_slot: Life | None = None
        """Of the requests that wait for a slot, the one that is due."""
        self._order: list[tuple[float, int, Life]] | None = None
        self._lines: dict[str, list[Life]] = {}
        """Of each client, those that may still be next, the last one first. Made when somebody is passed over."""
        self._next: Life | None = None
        self._is_known = False

    def next(self) -> Life | None:
        """The request to start now; None if nobody may. Repeatable."""
        if not self._is_known:
            self._next = self._choose()
            self._is_known = True
        return self._next

    def passed_over(self, life: Life, is_for_slot: bool) -> None:
        """It cannot start in this scan; ``is_for_slot``: because its adapter found no slot."""
        self._is_known = False
        self._passed.add(life.view.request_id)
        if is_for_slot and life.view.adapter is not None:
            self._full_adapters.add(life.view.adapter)
            self._without_slot = self._without_slot or life

    def changed(self) -> None:
        """Somebody started, came or went: counters have moved."""
        self._is_known = False
        self._order = None

    def _choose(self) -> Life | None:
        picked = self._policy.pick(self._now_s)
        if picked is None:
            return None
        due = self._lives[picked.request_id]
        return self._overtaker(due) if self._must_wait(due) else due

    def _must_wait(self, life: Life) -> bool:
        if life.view.adapter in self._full_adapters:
            self._without_slot = self._without_slot or life
            return True
        return life.view.request_id in self._passed

    def _overtaker(self, due: Life) -> Life | None:
        """Of those that may start, the one whose client is least ahead of ``due``; of several, the one that came first."""
        policy = self._policy
        if self._order is None:
            heads = [head for client_id in self._queues.clients if (head := self._head(client_id)) is not None]
            self._order = [(policy.ahead(head.view, due.view), head.place, head) for head in heads]
            heapq.heapify(self._order)
        order = self._order
        while order:
            ahead, _, life = order[0]
            if self._must_wait(life):
                head = self._head(life.view.client_id)
                if head is None:
                    heapq.heappop(order)
                else:
                    heapq.heapreplace(order, (ahead, head.place, head))
                continue
            blocked = self._without_slot
            if blocked is not None and policy.ahead(life.view, blocked.view) > self._overtaking:
                return None
            return life
        return None

    def _head(self, client_id: str) -> Life | None:
        """The client's oldest request that may start."""
        line = self._lines.get(client_id)
        if line is None:
            line = self._lines[client_id] = [self._lives[view.request_id] for view in self._queues.waiting(client_id)]
            line.reverse()
        while line and (not line[-1].is_waiting or self._must_wait(line[-1])):
            line.pop()
        return line[-1] if line else None
