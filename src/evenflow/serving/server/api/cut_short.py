"""Completions that were cut short: what they had until then goes into the accounts at once, the engine's figures when told."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.accounts.account_book import AccountBook
from evenflow.accounts.account_row import Sums
from evenflow.serving.client.messages import Usage

MOST_WAITING = 16_384
"""Completions of which the engine has not told yet; of those that were cut short before, it will not."""


@dataclass(frozen=True, slots=True)
class CutShort:
    """One completion, as the accounts know it."""

    client: str
    adapter: str
    outcome: str
    num_tokens: int
    """Of its output that are in the accounts already."""
    is_first: bool
    """The prompt's tokens are counted with it."""


class CutShortCompletions:
    """Those of which the engine's word is still to come. One event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, CutShort] = {}
        self.accounts: AccountBook | None = None
        """None: nothing is kept."""

    def add(self, request_id: str, completion: CutShort) -> None:
        """The engine is told, or has been, to stop working on it."""
        if self.accounts is None:
            return
        self._waiting[request_id] = completion
        if len(self._waiting) > MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def heard(self, request_id: str, usage: Usage) -> None:
        """The engine has stopped, and says what the completion took: what is not in the accounts yet is added."""
        completion = self._waiting.pop(request_id, None)
        if completion is None or self.accounts is None:
            return
        sums = Sums(
            cached_tokens=usage.cached_tokens if completion.is_first else 0,
            # Tokens that were on their way to a caller who had gone: they were computed, and charged.
            completion_tokens=max(0, usage.completion_tokens - completion.num_tokens),
            service=usage.service,
            queue_s=usage.queue_s,
        )
        self.accounts.add(completion.client, completion.adapter, completion.outcome, sums)


__all__ = ["CutShort", "CutShortCompletions"]
