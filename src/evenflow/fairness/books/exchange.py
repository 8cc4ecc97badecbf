"""What servers of one fairness tell their shared counters, and hear of them: the seam between a policy and its store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class Batch:
    """What one exchange sends. Repeated as it is until it was answered."""

    number: int
    charges: dict[str, float] = field(default_factory=dict)
    """By client, divided by weights."""
    joined: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    """Clients whose counters are asked for."""
    known: dict[str, float] = field(default_factory=dict)
    """For a store that has lost this server: counters to start from, and who waits."""
    waiting: list[str] = field(default_factory=list)
    introduces: bool = True
    """False: ``wanted``, ``known`` and ``waiting`` were left out, because the store should know this server."""


@dataclass(slots=True)
class Answer:
    """What the store knows after a batch."""

    virtual_time: float
    counters: dict[str, float]
    is_unknown: bool = False
    """The store does not know this server: nothing was applied, and the batch is to be sent with an introduction."""


class Store(Protocol):
    """Where servers meet."""

    @property
    def tells_changes(self) -> bool:
        """True: answers hold what has changed, and only a batch that is asked for introduces its server."""
        ...

    def exchange(self, batch: Batch) -> Answer | None:
        """Apply the batch once and answer; None if the store is away. Never raises for a store that is away."""
        ...

    @property
    def num_failures(self) -> int:
        """Exchanges that were not answered, or not well."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...
