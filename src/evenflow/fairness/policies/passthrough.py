"""A policy around another one, for those who listen or add to it: every call is passed on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from evenflow.fairness.books.cost import Service
from evenflow.fairness.policy import Policy, Verdict
from evenflow.fairness.schedulable import Schedulable


class PassThrough:
    """Answers what the policy inside answers. Override the calls to listen to, and call ``super()``."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def arrive(self, request: Schedulable, now_s: float) -> Verdict:
        """Pass it on."""
        return self._policy.arrive(request, now_s)

    def backlogged(self, client_id: str) -> None:
        """Pass it on."""
        self._policy.backlogged(client_id)

    def emptied(self, client_id: str) -> None:
        """Pass it on."""
        self._policy.emptied(client_id)

    def pick(self, now_s: float) -> Schedulable | None:
        """Pass it on."""
        return self._policy.pick(now_s)

    def upcoming(self, at_most: int) -> Sequence[Schedulable]:
        """Pass it on."""
        return self._policy.upcoming(at_most)

    def admitted(self, request: Schedulable, planned: Service) -> None:
        """Pass it on."""
        self._policy.admitted(request, planned)

    def charge(self, request: Schedulable, service: Service) -> None:
        """Pass it on."""
        self._policy.charge(request, service)

    def settle(self, request: Schedulable) -> None:
        """Pass it on."""
        self._policy.settle(request)

    def requeued(self, request: Schedulable) -> None:
        """Pass it on."""
        self._policy.requeued(request)

    def cancelled(self, request: Schedulable) -> None:
        """Pass it on."""
        self._policy.cancelled(request)

    def victim(self, running: Sequence[Schedulable]) -> Schedulable | None:
        """Pass it on."""
        return self._policy.victim(running)

    def displaced(self, head: Schedulable, running: Sequence[Schedulable]) -> Schedulable | None:
        """Pass it on."""
        return self._policy.displaced(head, running)

    def is_urgent(self, request: Schedulable, running: Sequence[Schedulable]) -> bool:
        """Pass it on."""
        return self._policy.is_urgent(request, running)

    def shares_changed(self) -> None:
        """Pass it on."""
        self._policy.shares_changed()

    def ahead(self, request: Schedulable, head: Schedulable) -> float:
        """Pass it on."""
        return self._policy.ahead(request, head)

    def close(self) -> None:
        """Pass it on."""
        self._policy.close()

    def price(self, service: Service) -> float:
        """Pass it on."""
        return self._policy.price(service)

    def counters(self) -> Mapping[str, float]:
        """Pass it on."""
        return self._policy.counters()

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Pass it on."""
        self._policy.check_integrity(waiting_clients)
