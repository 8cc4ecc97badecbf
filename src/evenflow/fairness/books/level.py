"""Competitors for one resource: their counters, who is least, and the lift of those who come back.

One Level is the whole of VTC's arithmetic between clients; a hierarchy is a tree of them. It knows
neither requests nor prices: names (clients, tiers, adapters) and what they are billed.

Two numbers of each competitor are kept apart, both divided by weights:

* **received**: the service it has had. It never falls;
* **ahead**: what it has been charged in advance, for prompts that are not computed yet and outputs that are only
  predicted. It goes back to 0 as the service comes or the request ends without it.

Its **counter** is their sum, and the least counter is next. A competitor that comes back from idleness is lifted, so
that it cannot have saved up service (VTC paper, algorithm 2), to what others have *received*:

* something is waiting: to the least received of those that wait;
* nothing is waiting: to what the one that left last has received.

Both are covered by the virtual time V, which never falls. Lifting to counters would not do: one that is charged in
advance for what it never receives has a high counter for a moment, and a newcomer lifted to it would stay up there.
An idle competitor at or below V would be lifted to V or higher, so its counter says nothing any more and is
forgotten: no state for those away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping

from evenflow.fairness.books.bill import Bill, InUnits, ticks, units
from evenflow.fairness.books.heap import RisingHeap


class Level:
    """Counters of competitors. O(log n) amortised per call; forgets the idle without loss."""

    def __init__(self, on_forgotten: Callable[[str], None] | None = None) -> None:
        """``on_forgotten`` is told who is remembered no more."""
        self._on_forgotten = on_forgotten
        self._received: dict[str, int] = {}
        self._counters: dict[str, int] = {}
        """What was received and what is charged ahead of it."""
        self._in_advance: dict[str, int] = {}
        """Charged ahead and not divided by weights, of those that are charged ahead."""
        self._num_held: dict[str, int] = {}
        self._waiting = RisingHeap(self._order())
        self._waiting_by_received = RisingHeap(self._received)
        self._idle = RisingHeap(self._received)
        self._virtual_time = 0
        self._last_left: str | None = None

    @property
    def virtual_time(self) -> float:
        """The level to which a newcomer would be lifted now, in units. Never falls."""
        return units(self._advance())

    @property
    def counters(self) -> Mapping[str, float]:
        """Counters of those that wait, are held, or have had more than the virtual time, in units. Read only."""
        return InUnits(self._counters)

    def join(self, name: str) -> None:
        """It had nothing waiting and now has: lift it and let it compete."""
        # Out of the idle first: whoever comes back is not to be forgotten on the way, nor what hangs below it in a tree.
        self._idle.discard(name)
        self._lift(name, self._advance())
        self._enter(name)

    def rejoin(self, name: str) -> None:
        """Something of it, held before, waits again: no lift."""
        if name not in self._waiting:
            self._enter(name)

    def leave(self, name: str) -> None:
        """It has nothing waiting any more; if it was the last, newcomers are lifted to what it has received."""
        self._advance()
        self._waiting.discard(name)
        self._waiting_by_received.discard(name)
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

    def open(self, name: str, weight: float) -> Bill:
        """A bill of nothing so far, for one that is held. ``weight`` is the competitor's."""
        return Bill(name, (weight,))

    def bring(self, bill: Bill, service: float, in_advance: float) -> None:
        """Bring a bill to this much service received and this much charged in advance of it, in units."""
        weight, received, ahead = bill.weights[0], bill.received[0], bill.ahead[0]
        now_received = ticks(service, weight)
        now_ahead = ticks(in_advance, weight) if in_advance else 0
        advanced = ticks(in_advance) - ticks(bill.in_advance) if in_advance or ahead else 0
        bill.service, bill.in_advance = service, in_advance
        bill.received[0], bill.ahead[0] = now_received, now_ahead
        self.shift(bill.name, now_received - received, now_ahead - ahead, advanced)

    def finish(self, bill: Bill, service: float) -> None:
        """The bill is final: what was charged in advance beyond ``service`` is given back."""
        self.bring(bill, service, 0.0)

    def shift(self, name: str, received: int, ahead: int, in_advance: int) -> None:
        """Move its numbers by so many ticks; ``in_advance`` is ``ahead`` not divided by the weight."""
        assert received >= 0, f"{name} has received less than before"
        if received:
            self._received[name] += received
        if in_advance:
            total = self._in_advance.get(name, 0) + in_advance
            if total:
                self._in_advance[name] = total
            else:
                del self._in_advance[name]
        change = received + ahead
        if change:
            self._counters[name] += change
            if change < 0:
                self._waiting.lowered(name)

    def in_advance(self, name: str) -> float:
        """What it is charged ahead of service, in units and not divided by its weight."""
        return units(self._in_advance.get(name, 0))

    def num_held(self, name: str) -> int:
        """How many ``release`` are still to come for it."""
        return self._num_held.get(name, 0)

    def least(self) -> str | None:
        """Whose turn it is: the one with the least counter of those that wait."""
        return self._waiting.peek()

    def received(self, name: str) -> int:
        """What one that waits or is held has received, in ticks."""
        return self._received[name]

    def gap(self, name: str, other: str) -> float:
        """By how much the counter of one that waits exceeds another's, in units."""
        return units(self._counters[name] - self._counters[other])

    def lead(self, name: str, other: str) -> float:
        """By how much what one has received exceeds another's counter, in units."""
        return units(self._received[name] - self._counters[other])

    def nearest(self, within: float, at_most: int) -> list[str]:
        """Up to ``at_most`` of those that wait, least first, whose counters exceed the least by no more than ``within``."""
        return self._waiting.nearest(within if math.isinf(within) else ticks(within), at_most)

    def at_level(self, at_most: int) -> list[str]:
        """Up to ``at_most`` of those that wait, least first, whose counters are no higher than a newcomer's would be."""
        least = self._waiting.peek()
        if least is None:
            return []
        return self._waiting.nearest(max(0, self._advance() - self._counters[least]), at_most)

    def is_at_level(self, name: str) -> bool:
        """Whether the counter of one that waits is no higher than a newcomer's would be."""
        return self._counters[name] <= self._advance()

    def __contains__(self, name: object) -> bool:
        """Whether it waits."""
        return name in self._waiting

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def check_integrity(self, waiting: Collection[str], num_held: Mapping[str, int]) -> None:
        """Assert that all that is remembered waits, is held or is ahead of the virtual time, and heaps agree with it."""
        for heap in (self._waiting, self._waiting_by_received, self._idle):
            heap.check_integrity()
        assert set(self._waiting) == set(self._waiting_by_received) == set(waiting), (
            "those that wait are not those of the queues"
        )
        assert num_held == self._num_held, "the number of held requests is wrong"
        idle = self._counters.keys() - set(self._waiting) - self._num_held.keys()
        assert set(self._idle) == idle, "one that neither waits nor is held is not in the idle heap"
        assert all(self._received[name] > self._virtual_time for name in idle), "one was remembered for nothing"
        assert self._received.keys() == self._counters.keys()
        for name, counter in self._counters.items():
            ahead = counter - self._received[name]
            assert ahead >= 0, f"{name} was charged less than it has received"
            assert name in self._num_held or not ahead, f"{name} runs nothing and is charged in advance"
            assert (name in self._in_advance) == (ahead > 0), f"what {name} is charged in advance is not what was noted"
        assert all(amount > 0 for amount in self._in_advance.values())

    def _order(self) -> Mapping[str, int]:
        """By what those that wait are ordered; never falls while the counter does not."""
        return self._counters

    def _enter(self, name: str) -> None:
        self._waiting.add(name)
        self._waiting_by_received.add(name)

    def _lift(self, name: str, level: int) -> None:
        """Raise what it has received to ``level``, if that is more."""
        lacking = level - self._received.get(name, 0)
        if name not in self._received:
            self._received[name] = self._counters[name] = level
        elif lacking > 0:
            self._received[name] += lacking
            self._counters[name] += lacking

    def _advance(self) -> int:
        """Move the virtual time up to where the lift rules see it now, and forget whom it has overtaken."""
        level = self._virtual_time
        name = self._waiting_by_received.peek()
        if name is None:
            name = self._last_left
        if name is not None:
            level = max(level, self._received.get(name, level))
        self._virtual_time = level
        while (idle := self._idle.peek()) is not None and self._received[idle] <= level:
            self._idle.discard(idle)
            del self._received[idle], self._counters[idle]
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
        self._virtual_time = -1

    def join(self, name: str) -> None:
        """It competes with the counter it has; 0 if it was never seen."""
        self._idle.discard(name)
        self._lift(name, 0)
        self._enter(name)

    def _advance(self) -> int:
        return self._virtual_time


class HalfLiftedLevel(UnliftedLevel):
    """Lifts only to those that wait: whoever comes while nothing waits keeps the counter it had long ago.

    The rule of VTC's published code, which left out the second half of algorithm 2. For ablations: one that
    comes with a burst after idleness is then served alone until it has caught up with those that never left.
    """

    def join(self, name: str) -> None:
        """Lift it to the least of those that wait; if there is none, not at all."""
        least = self._waiting_by_received.peek()
        if least is not None:
            self._lift(name, self._received[least])
        super().join(name)


class RoundLevel(Level):
    """Counters count in whole quanta: within one, the turn order decides (deficit round robin).

    In round k one may start requests while its deficit (k + 1) quantum - counter is positive; a debt is
    paid with the rounds that follow. Rounds in which nobody may start anything take no time.
    """

    def __init__(self, quantum: float) -> None:
        self._quantum = ticks(quantum)
        super().__init__()

    def _order(self) -> Mapping[str, int]:
        return _Rounds(self._counters, self._quantum)


class _Rounds(Mapping[str, int]):
    """The round in which each counter lies."""

    def __init__(self, counters: Mapping[str, int], quantum: int) -> None:
        self._counters = counters
        self._quantum = quantum

    def __getitem__(self, name: str) -> int:
        return self._counters[name] // self._quantum

    def __iter__(self) -> Iterator[str]:
        return iter(self._counters)

    def __len__(self) -> int:
        return len(self._counters)
