"""Which adapters are loaded beside a step for requests that still wait: a small object, asked once per step.

It may take memory that nobody else wants, and no other: pages that are free beyond a reserve for the growth of what
runs, and those of idle adapters that no waiting request needs and that would be evicted next anyway. What it has
loaded counts as idle until it is used, so KV and admission find the same pages available as without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from evenflow.base.errors import AdapterError, ConfigError
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.policy import Policy
from evenflow.serving.core.request import AdapterDigest, Request, RequestId
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.memory.page_table import pages_for
from evenflow.serving.memory.residency import Residency


class Prefetch(Protocol):
    """Plans loads for requests that wait, by telling the residency."""

    @property
    def lookahead(self) -> int:
        """Waiting requests it wants to be shown."""
        ...

    def plan(
        self, upcoming: Sequence[Request], num_running: int, residency: Residency, is_wanted: Callable[[AdapterDigest], bool]
    ) -> None:
        """A step has been filled, and these requests are expected to start next. ``is_wanted``: a request waits for it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetedPrefetch:
    """Load in the order of the waiting requests, so many pages per step. Raises ConfigError for limits below 1."""

    step_pages: int
    """Pages copied beside one step: what a step hides."""
    held_pages: int
    """Pages that prefetched adapters which nobody has used yet may hold."""
    page_tokens: int
    lookahead: int = 16
    reserve_per_running: int = 2
    """Free pages left for each running request to grow into."""

    def __post_init__(self) -> None:
        for name in ("step_pages", "held_pages", "page_tokens", "lookahead"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of the prefetch is {getattr(self, name)}; allowed: 1 or more")

    def plan(
        self, upcoming: Sequence[Request], num_running: int, residency: Residency, is_wanted: Callable[[AdapterDigest], bool]
    ) -> None:
        """See Prefetch. O(lookahead) and what is evicted."""
        if residency.num_prefetched_pages:
            residency.drop_prefetches(is_wanted)
        if not upcoming:
            return
        left = self.step_pages
        num_reserved = num_running * self.reserve_per_running + pages_for(upcoming[0].num_tokens, self.page_tokens)
        for digest in dict.fromkeys(request.adapter for request in upcoming if request.adapter is not None):
            try:
                record = residency.record(digest)
            except AdapterError:  # unloaded while its request waits: it is told when its turn comes
                continue
            if not residency.num_pages_to_prefetch(record):
                continue
            if not residency.is_resident(digest) and residency.num_prefetched_pages + record.num_pages > self.held_pages:
                break
            taken = residency.prefetch(record, left, num_reserved=num_reserved, is_wanted=is_wanted)
            left -= taken
            if left <= 0 or taken == 0:
                break  # nobody is overtaken: memory found for a later one would be taken from this one


def prefetch_within(step_bytes: int, layout: ArenaLayout, num_pages: int) -> Prefetch | None:
    """The prefetch of a server, and of whatever is compared with one; None if ``step_bytes`` is 0.

    ``step_bytes`` are copied beside one step, rounded down to pages but one page at least. Prefetched adapters that
    nobody has used yet hold at most a quarter of the arena's ``num_pages``.
    """
    if not step_bytes:
        return None
    return BudgetedPrefetch(
        step_pages=max(1, step_bytes // layout.page_bytes),
        held_pages=max(1, num_pages // 4),
        page_tokens=layout.page_tokens,
    )


def expected_next(
    policy: Policy, queues: ClientQueues, book: Callable[[RequestId], Request | None], at_most: int
) -> list[Request]:
    """The waiting requests expected to start next: the policy's guess, else the heads of the queues."""
    guess = policy.upcoming(at_most) or queues.interleaved(queues.first_clients(at_most), at_most)
    found = [book(RequestId(str(request.request_id))) for request in guess]
    return [request for request in found if request is not None]


__all__ = ["BudgetedPrefetch", "Prefetch", "expected_next", "prefetch_within"]
