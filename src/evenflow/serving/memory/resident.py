"""One adapter that has its place in the arena. Changed by the residency alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from evenflow.serving.core.adapter import AdapterRecord
from evenflow.serving.memory.arena import PageOwner


@dataclass(slots=True)
class Resident:
    """Its slot and pages, who needs it there, and how much of it has been loaded."""

    record: AdapterRecord
    slot: int
    pages: list[int]
    num_users: int = 0
    is_pinned: bool = False
    idle_since: int = 0
    is_forgotten: bool = False
    """Leave as soon as nobody uses it."""
    is_prefetched: bool = False
    """Placed for a request that waits, and not used since."""
    num_taken: int = 0
    """Of its pages, the first so many have been handed over as loads."""
    num_wanted: int = 0
    """So many are to be handed over by the next loads."""
    bytes_due: int = 0
    """What loading it has cost, until the request that caused it is charged."""
    owner: PageOwner = field(init=False)

    def __post_init__(self) -> None:
        self.owner = PageOwner("adapter", self.record.digest)

    @property
    def is_evictable(self) -> bool:
        return self.num_users == 0 and not self.is_pinned
