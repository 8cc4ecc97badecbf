"""What one client or one adapter has had, and has under way."""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter


@dataclass(slots=True)
class Tally:
    """Counters and gauges of one name."""

    prompt_tokens: int = 0
    """Computed, not found in the cache."""
    completion_tokens: int = 0
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    num_ended: int = 0
    num_preemptions: int = 0
    num_answered: int = 0
    ttft_s: float = 0.0
    """Seconds from arrival in the engine to the first token, summed over those answered."""
    num_waiting: int = 0
    num_running: int = 0

    def add(self, other: Tally) -> None:
        """Take over another one's numbers."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


numbers_of = attrgetter(*(field.name for field in fields(Tally)))
"""All numbers of a tally as a tuple, in the order of its fields."""
