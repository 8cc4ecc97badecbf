"""Competitors for one resource: their counters, who is least, and the lift of those who come back.

One Level is the whole of VTC's arithmetic between clients; a hierarchy is a tree of them. It knows
neither requests nor prices: names (clients, tiers, adapters) and amounts already divided by weights.

A competitor that comes back from idleness is lifted, so that it cannot have saved up service (VTC
paper, algorithm 2):

* something is waiting: to the least counter of those that wait;
* nothing is waiting: to the counter of the one that left last.

Both are covered by the virtual time V, which never falls. An idle competitor at or below V would be
lifted to V or higher, so its counter says nothing any more and is forgotten: no state for those away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType

from evenflow.fairness.books.heap import RisingHeap


class Level:
    """Counters of competitors. O(log n) amortised per call; forgets the idle without loss."""

    def __init__(self, on_forgotten: Callable[[str], None] | None = None) -> None:
        """``on_forgotten`` is told who is remembered no more."""
        self._on_forgotten = on_forgotten
        self._counters: dict[str, float] = {}
        self._num_held: dict[str, int] = {}
        self._waiting = RisingHeap(self._order())
        self._idle = RisingHeap(self._counters)
        self._virtual_time = 0.0
        self._last_left: str | None = None

    @property
    def virtual_time(self) -> float:
        """The level to which a newcomer would be lifted now. Never falls."""
        return self._advance()

    @property
    def counters(self) -> Mapping[str, float]:
        """Counters of those that wait, are held, or have had more than the virtual time. Read only."""
        return MappingProxyType(self._counters)

    def join(self, name: str) -> None:
        """It had nothing waiting and now has: lift it and let it compete."""
        # Out of the idle first: whoever comes back is not to be forgotten on the way, nor what hangs below it in a tree.
        self._idle.discard(name)
        level = self._advance()
        if name not in self._counters or self._counters[name] < level:
            self._counters[name] = level
        self._waiting.add(name)

    def rejoin(self, name: str) -> None:
        """Something of it, held before, waits again: no lift."""
        if name not in self._waiting:
            self._waiting.add(name)

    def leave(self, name: str) -> None:
        """It has nothing waiting any more; if it was the last, newcomers are lifted to its counter."""
        self._advance()
        self._waiting.discard(name)
        if not self._waiting:
            self._last_left = name
        self._retire(name)

    def hold(self, name: str) -> None:
        """Something of it is being served: remember it until as many ``release``."""
        self._advance()
        self._num_held[name] = self._num_held.get(name, 0) + 1

    def release(self, name: str) -> None:
        """What was held has ended."""
        left = self._num_held[name] - 1
        if left:
            self._num_held[name] = left
        else:
            del self._num_held[name]
            self._retire(name)

    def add(self, name: str, amount: float) -> None:
        """Raise its counter, or lower it if ``amount`` is negative. It waits or is held."""
        self._counters[name] += amount
        if amount < 0.0:
            self._waiting.lowered(name)

    def num_held(self, name: str) -> int:
        """How many ``release`` are still to come for it."""
        return self._num_held.get(name, 0)

    def least(self) -> str | None:
        """Whose turn it is: the one with the least counter of those that wait."""
        return self._waiting.peek()

    def gap(self, name: str, other: str) -> float:
        """By how much the counter of one that waits exceeds another's."""
        return self._counters[name] - self._counters[other]

    def nearest(self, within: float, at_most: int) -> list[str]:
        """Up to ``at_most`` of those that wait, least first, whose counters exceed the least by no more than ``within``."""
        return self._waiting.nearest(within, at_most)

    def __contains__(self, name: object) -> bool:
        """Whether it waits."""
        return name in self._waiting

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def check_integrity(self, waiting: Collection[str], num_held: Mapping[str, int]) -> None:
        """Assert that all that is remembered waits, is held or is ahead of the virtual time, and heaps agree with it."""
        self._waiting.check_integrity()
        self._idle.check_integrity()
        assert set(self._waiting) == set(waiting), "those that wait are not those of the queues"
        assert num_held == self._num_held, "the number of held requests is wrong"
        idle = self._counters.keys() - set(self._waiting) - self._num_held.keys()
        assert set(self._idle) == idle, "one that neither waits nor is held is not in the idle heap"
        assert all(self._counters[name] > self._virtual_time for name in idle), "one was remembered for nothing"

    def _order(self) -> Mapping[str, float]:
        """By what those that wait are ordered; never falls while the counter does not."""
        return self._counters

    def _advance(self) -> float:
        """Move the virtual time up to where the lift rules see it now, and forget whom it has overtaken."""
        level = self._virtual_time
        name = self._waiting.peek()
        if name is None:
            name = self._last_left
        if name is not None:
            level = max(level, self._counters.get(name, level))
        self._virtual_time = level
        while (idle := self._idle.peek()) is not None and self._counters[idle] <= level:
            self._idle.discard(idle)
            del self._counters[idle]
            if self._on_forgotten is not None:
                self._on_forgotten(idle)
        return level

    def _retire(self, name: str) -> None:
        """One that neither waits nor is held is remembered only while it is ahead of the virtual time."""
        if name in self._waiting or name in self._num_held:
            return
        self._idle.add(name)
        self._advance()


class UnliftedLevel(Level):
    """Nobody is ever lifted and nobody forgotten: service saved up in idleness is paid back in full (the paper's LCF)."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual_time = -math.inf

    def join(self, name: str) -> None:
        """It competes with the counter it has; 0 if it was never seen."""
        self._idle.discard(name)
        self._counters.setdefault(name, 0.0)
        self._waiting.add(name)

    def _advance(self) -> float:
        return self._virtual_time


class HalfLiftedLevel(UnliftedLevel):
    """Lifts only to those that wait: whoever comes while nothing waits keeps the counter it had long ago.

    The rule of VTC's published code, which left out the second half of algorithm 2. For ablations: one that
    comes with a burst after idleness is then served alone until it has caught up with those that never left.
    """

    def join(self, name: str) -> None:
        """Lift it to the least of those that wait; if there is none, not at all."""
        least = self._waiting.peek()
        super().join(name)
        if least is not None:
            self._counters[name] = max(self._counters[name], self._counters[least])


class RoundLevel(Level):
    """Counters count in whole quanta: within one, the turn order decides (deficit round robin).

    In round k one may start requests while its deficit (k + 1) quantum - counter is positive; a debt is
    paid with the rounds that follow. Rounds in which nobody may start anything take no time.
    """

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        super().__init__()

    def _order(self) -> Mapping[str, float]:
        return _Rounds(self._counters, self._quantum)


class _Rounds(Mapping[str, float]):
    """The round in which each counter lies."""

    def __init__(self, counters: Mapping[str, float], quantum: float) -> None:
        self._counters = counters
        self._quantum = quantum

    def __getitem__(self, name: str) -> float:
        return self._counters[name] // self._quantum

    def __iter__(self) -> Iterator[str]:
        return iter(self._counters)

    def __len__(self) -> int:
        return len(self._counters)
