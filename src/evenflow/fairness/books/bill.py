"""What one request has been charged, exactly: the unit in which counters count, and one bill per running request.

Counters are whole numbers of ticks, 2^-96 of a unit of service each. A counter in floating point would lose sight of a
client of weight 1 beside one of weight 1e-9: after 10 million tokens of the latter it stands at 1e16, where a double
cannot add 1. A whole number never rounds, however large it grows, and what was added comes off again to the last tick.
Weights are from 1e-9 to 1e9, a client's own and its tier's, so their product is at most 1e18: the cheapest token (0.1 for
a cached one) over that is still 7.9e9 ticks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

TICKS_PER_UNIT = 2**96
_SCALE = float(TICKS_PER_UNIT)


def ticks(service: float, weight: float = 1.0) -> int:
    """``service`` over ``weight`` in ticks, rounded down. The same arguments always give the same number."""
    return int(service / weight * _SCALE)


def units(num_ticks: int) -> float:
    """Ticks as units of service, to the nearest double."""
    return num_ticks / TICKS_PER_UNIT


@dataclass(slots=True, eq=False)
class Bill:
    """What one request has cost the competitors that pay for it: one, or every node on its path through a tree."""

    name: str
    weights: tuple[float, ...]
    """Of each payer, when the request was admitted: what is taken back is worth what it was charged for."""
    service: float = 0.0
    """Received so far, in units, not divided by weights."""
    in_advance: float = 0.0
    """Charged for what has not been received yet, in the same unit."""
    received: list[int] = field(init=False)
    """``service`` over each weight, in ticks."""
    ahead: list[int] = field(init=False)
    """``in_advance`` over each weight, in ticks."""

    def __post_init__(self) -> None:
        self.received = [0] * len(self.weights)
        self.ahead = [0] * len(self.weights)


class InUnits(Mapping[str, float]):
    """A view of a mapping from names to ticks, in units."""

    def __init__(self, by_name: Mapping[str, int]) -> None:
        self._by_name = by_name

    def __getitem__(self, name: str) -> float:
        return units(self._by_name[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return repr(dict(self))
