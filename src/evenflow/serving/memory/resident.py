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
    """True: the adapter was unloaded, and leaves the arena as soon as no request uses it."""
    is_prefetched: bool = False
    """True: loaded for a request that waits, and not used since."""
    num_taken: int = 0
    """How many of its pages, counted from the first, ``take_loads`` has handed over."""
    num_wanted: int = 0
    """How many of its pages, counted from the first, will have been handed over after the next ``take_loads``."""
    bytes_due: int = 0
    """Bytes that were loaded for it and that no request has been charged for yet."""
    owner: PageOwner = field(init=False)

    def __post_init__(self) -> None:
        self.owner = PageOwner("adapter", self.record.digest)

    @property
    def is_evictable(self) -> bool:
        return self.num_users == 0 and not self.is_pinned
