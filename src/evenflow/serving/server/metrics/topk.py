"""Bounded cardinality: series of their own for the K most active names, and one sum called "other".

Counters stay monotone when a name moves in or out: what a name gains is added, at the time it is gained, to
the label that the name has then. So a promoted name starts at zero and "other" never falls.
"""

from __future__ import annotations

from collections.abc import Mapping

OTHER = "other"
_DECAY = 0.9
_HYSTERESIS = 2.0
"""A newcomer must be this much busier than the least busy name shown, or the labels would flicker."""


class TopK:
    """Chooses the names that are shown and sums their counters, and everybody else's."""

    def __init__(self, k: int, num_counters: int) -> None:
        self._k = k
        self._num_counters = num_counters
        self._shown: set[str] = set()
        self._activity: dict[str, float] = {}
        self._last: dict[str, tuple[float, ...]] = {}
        self._totals: dict[str, list[float]] = {}

    @property
    def totals(self) -> Mapping[str, list[float]]:
        """Label to its counters."""
        return self._totals

    def label(self, name: str) -> str:
        """The label under which ``name`` is counted now; a free place is taken."""
        if name in self._shown:
            return name
        if len(self._shown) < self._k:
            self._shown.add(name)
            return name
        return OTHER

    def update(self, counters: Mapping[str, tuple[float, ...]]) -> list[str]:
        """Take a snapshot of every name's counters, the first of them measuring activity. Returns the names no longer shown."""
        gains: dict[str, list[float]] = {}
        for name, values in counters.items():
            before = self._last.get(name)
            if before is None or any(value < old for value, old in zip(values, before)):
                before = (0.0,) * self._num_counters  # new, or forgotten by the engine and come back
            gains[name] = [value - old for value, old in zip(values, before)]
        self._last = dict(counters)
        for name in set(self._activity) | set(gains):
            self._activity[name] = _DECAY * self._activity.get(name, 0.0) + gains.get(name, [0.0])[0]
            if self._activity[name] < 1e-3 and name not in self._shown:
                del self._activity[name]
        hidden = self._promote()
        for name, gain in gains.items():
            totals = self._totals.setdefault(self.label(name), [0.0] * self._num_counters)
            for i, value in enumerate(gain):
                totals[i] += value
        return hidden

    def _promote(self) -> list[str]:
        hidden: list[str] = []
        candidates = sorted((n for n in self._activity if n not in self._shown), key=self._activity.__getitem__, reverse=True)
        shown = sorted(self._shown, key=lambda n: self._activity.get(n, 0.0))
        for candidate in candidates:
            if len(self._shown) < self._k:
                self._shown.add(candidate)
                continue
            if not shown or self._activity[candidate] <= _HYSTERESIS * self._activity.get(shown[0], 0.0):
                break
            loser = shown.pop(0)
            self._shown.remove(loser)
            self._totals.pop(loser, None)
            hidden.append(loser)
            self._shown.add(candidate)
        return hidden
