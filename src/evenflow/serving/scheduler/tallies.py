"""Who has how much waiting, running and received: one tally per client and per adapter, for metrics only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(slots=True)
class Tally:
    """Counts since the start, or since the tally was last dropped as idle."""

    num_waiting: int = 0
    num_running: int = 0
    prompt_tokens: int = 0
    """Prompt tokens computed, each once."""
    completion_tokens: int = 0
    recomputed_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""
    settled_service: float = 0.0
    """What the policy has charged for requests that have ended, in its cost function's unit."""

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return self.num_waiting == 0 and self.num_running == 0


class Tallies:
    """Tallies by name. Those of the idle are kept for a while: the ``max_idle`` most recent ones."""

    def __init__(self, max_idle: int = 4096) -> None:
        self._max_idle = max_idle
        self._tallies: dict[str, Tally] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()

    def enter(self, name: str) -> Tally:
        """The tally of somebody who brings a request. The same object until ``leave`` finds it idle."""
        tally = self._tallies.get(name)
        if tally is None:
            tally = self._tallies[name] = Tally()
        else:
            self._idle.pop(name, None)
        return tally

    def leave(self, name: str) -> None:
        """A request of this one has ended. If it was the last, the tally may be dropped later."""
        if self._tallies[name].is_idle:
            self._idle[name] = None
            if len(self._idle) > self._max_idle:
                oldest, _ = self._idle.popitem(last=False)
                del self._tallies[oldest]

    @property
    def by_name(self) -> Mapping[str, Tally]:
        """All tallies that are kept. Do not change them."""
        return MappingProxyType(self._tallies)

    def check_integrity(self) -> None:
        """Assert that exactly the idle are in line to be dropped, and not too many."""
        assert set(self._idle) == {name for name, tally in self._tallies.items() if tally.is_idle}
        assert len(self._idle) <= self._max_idle
