"""What most policies answer to most calls: nothing. A policy overrides the calls that it means something by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from evenflow.fairness.books.cost import Service, WeightedTokens
from evenflow.fairness.policy import ACCEPT, Verdict
from evenflow.fairness.schedulable import Schedulable

_WEIGHTED_TOKENS = WeightedTokens()


class PolicyDefaults:
    """Accepts every request, keeps no accounts, preempts the newest request. ``pick`` is left to the policy."""

    def arrive(self, request: Schedulable, now_s: float) -> Verdict:
        """Accept."""
        return ACCEPT

    def backlogged(self, client_id: str) -> None:
        """Do nothing."""

    def emptied(self, client_id: str) -> None:
        """Do nothing."""

    def upcoming(self, at_most: int) -> Sequence[Schedulable]:
        """No guess."""
        return ()

    def admitted(self, request: Schedulable, planned: Service) -> None:
        """Do nothing."""

    def charge(self, request: Schedulable, service: Service) -> None:
        """Do nothing."""

    def settle(self, request: Schedulable) -> None:
        """Do nothing."""

    def requeued(self, request: Schedulable) -> None:
        """Do nothing."""

    def cancelled(self, request: Schedulable) -> None:
        """Do nothing."""

    def victim(self, running: Sequence[Schedulable]) -> Schedulable | None:
        """The request that arrived last; of several, the one admitted last."""
        return max(reversed(running), key=lambda request: request.arrival_s, default=None)

    def displaced(self, head: Schedulable, running: Sequence[Schedulable]) -> Schedulable | None:
        """Nobody: what runs may finish."""
        return None

    def is_urgent(self, request: Schedulable, running: Sequence[Schedulable]) -> bool:
        """No: prompts are computed in the order of their admission."""
        return False

    def shares_changed(self) -> None:
        """Do nothing: weights are read when they are needed."""

    def ahead(self, request: Schedulable, head: Schedulable) -> float:
        """No accounts: nobody is ahead."""
        return 0.0

    def close(self) -> None:
        """Nothing is held outside this process."""

    def price(self, service: Service) -> float:
        """Weighted tokens, so that what clients received can be compared."""
        return _WEIGHTED_TOKENS(service.prefill_tokens, service.decode_tokens, service.cached_tokens)

    def counters(self) -> Mapping[str, float]:
        """No counters."""
        return {}

    def check_integrity(self, waiting_clients: Collection[str]) -> None:
        """Nothing to check."""
