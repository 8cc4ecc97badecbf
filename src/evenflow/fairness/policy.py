"""The seam between a scheduler and who is served next: one protocol, many policies.

A policy decides the order of requests and keeps the accounts of clients. It knows no memory, no
tensors, no HTTP, and reads no clock of its own: times are arguments. The walk of one request:

    verdict = policy.arrive(request, now)         reject here, or go on
    was_idle = queues.push(request)               the queues are the scheduler's and the policy's common ground
    if was_idle: policy.backlogged(client)        VTC lifts the counter here
    while there is room:
        request = policy.pick(now)                None: nobody may start now
        try to place it; if it does not fit, ask policy.displaced(request, running): requeue that one and go on,
            or, with None, stop (head-of-line: the bound needs it)
        queues.remove(request)
        policy.admitted(request, service)         charged before the next pick
        if its client's queue is empty: policy.emptied(client)
    each step, at commit: policy.charge(request, service)
    policy.settle(request)                        exactly once, at finish or abort of a request that was admitted
    policy.requeued(request)                      preempted: back at the head of its queue, no lift
    policy.cancelled(request)                     aborted while waiting, never admitted (then emptied(), if it was the last)

While a step's rows are given out: policy.is_urgent(request, running)   its prompt goes before others
At any time: policy.shares_changed()              the owner of weights and tiers has changed them
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from evenflow.fairness.books.cost import Service
from evenflow.fairness.schedulable import Schedulable


@dataclass(frozen=True, slots=True)
class Verdict:
    """Answer to an arrival. ``retry_after_s`` is meaningful for a rejection only."""

    is_accepted: bool
    reason: str = ""
    retry_after_s: float = 0.0


ACCEPT = Verdict(True)


class Policy(Protocol):
    """Who is served next, and what they are charged. See the module's walk for the order of calls."""

    def arrive(self, request: Schedulable, now_s: float) -> Verdict:
        """Accept or reject a new request, before it is queued."""
        ...

    def backlogged(self, client_id: str) -> None:
        """The client had nothing waiting and now has (its request is in the queue already)."""
        ...

    def emptied(self, client_id: str) -> None:
        """The client has nothing waiting any more: its last request was admitted or aborted."""
        ...

    def pick(self, now_s: float) -> Schedulable | None:
        """The request to start next, left in its queue; None if none may start now. Repeatable: no side effect that shows."""
        ...

    def upcoming(self, at_most: int) -> Sequence[Schedulable]:
        """A guess at the next picks, in their order, to prepare for them; may be empty. Cheap; no side effect that shows."""
        ...

    def admitted(self, request: Schedulable, planned: Service) -> None:
        """The request starts. Charge its input (``planned.prefill_tokens``: the whole prompt) or its predicted cost, now."""
        ...

    def charge(self, request: Schedulable, service: Service) -> None:
        """At commit: the request received this. Input charged by ``admitted`` is not charged again."""
        ...

    def settle(self, request: Schedulable) -> None:
        """An admitted request has ended: what it was charged becomes exactly what it received."""
        ...

    def requeued(self, request: Schedulable) -> None:
        """An admitted request was preempted and is at the head of its client's queue again. No lift, no refund."""
        ...

    def cancelled(self, request: Schedulable) -> None:
        """A request left its queue without ever being admitted (aborted while waiting)."""
        ...

    def victim(self, running: Sequence[Schedulable]) -> Schedulable | None:
        """Which running request gives its pages back first; None if none may."""
        ...

    def displaced(self, head: Schedulable, running: Sequence[Schedulable]) -> Schedulable | None:
        """``head``, just picked, does not fit: which running request must give way to it; None: it waits, as usual.

        Only whose request it is counts: of that client's the scheduler stops the one that loses least.
        """
        ...

    def is_urgent(self, request: Schedulable, running: Sequence[Schedulable]) -> bool:
        """``request``, which waits and is due or runs, goes before others' prompts when the rows of a step are given out."""
        ...

    def shares_changed(self) -> None:
        """The weights or tiers that the policy reads are others now. What was charged stays charged."""
        ...

    def ahead(self, request: Schedulable, head: Schedulable) -> float:
        """How much more service per weight the payer of ``request`` has had than that of ``head``, by this policy's accounts.

        Both wait. 0 if it keeps none. Bounds what may overtake.
        """
        ...

    def close(self) -> None:
        """Give back what the policy holds outside this process. Called once, after the last request. Idempotent."""
        ...

    def price(self, service: Service) -> float:
        """What a request that has ended was charged for ``service``, all that it received, in the policy's own unit.

        A policy that charges nothing answers what weighted tokens would cost. Pure.
        """
        ...

    def counters(self) -> Mapping[str, float]:
        """Virtual counter by client, for the clients that the policy remembers (metrics only)."""
        ...

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Assert the policy's own books against the set of clients that have something waiting."""
        ...
