"""Bytes on the wire: what a plan promises and what the operations really carried, by site.

One formula for both: what a rank sends in a bandwidth-optimal collective. The cost model uses the same function, so
prediction and counters cannot drift apart.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Kind(enum.Enum):
    """A collective operation."""

    ALL_REDUCE = "all-reduce"
    ALL_GATHER = "all-gather"
    ALL_TO_ALL = "all-to-all"
    REDUCE_SCATTER = "reduce-scatter"
    SEND = "send"


def sent_bytes(kind: Kind, tensor_bytes: int, world_size: int) -> float:
    """Return the bytes one rank sends for an operation whose input tensor has ``tensor_bytes``.

    All-reduce 2 (W-1)/W, reduce-scatter and all-to-all (W-1)/W of the input, all-gather W-1 times the input, send 1.
    """
    W = world_size
    if kind is Kind.SEND:
        return float(tensor_bytes)
    if kind is Kind.ALL_REDUCE:
        return 2 * (W - 1) / W * tensor_bytes
    if kind is Kind.ALL_GATHER:
        return float((W - 1) * tensor_bytes)
    return (W - 1) / W * tensor_bytes


@dataclass(slots=True)
class SiteBytes:
    """What one rank sent at one wire site."""

    exchanges: int = 0
    """How many exchanges were begun."""
    planned: float = 0.0
    """Bytes that their wire plans promised; fractions, because a collective sends (W - 1) / W of a tensor."""
    counted: float = 0.0
    """Bytes of the operations that were carried out, by the same formula (``sent_bytes``)."""


@dataclass
class Ledger:
    """Planned and counted bytes by site; owned by one rank."""

    by_site: dict[str, SiteBytes] = field(default_factory=dict)

    def expect(self, site: str, planned: float) -> None:
        """Note one exchange that should send ``planned`` bytes."""
        entry = self.by_site.setdefault(site, SiteBytes())
        entry.exchanges += 1
        entry.planned += planned

    def count(self, site: str, kind: Kind, tensor_bytes: int, world_size: int) -> None:
        """Note one operation that was carried out."""
        self.by_site.setdefault(site, SiteBytes()).counted += sent_bytes(kind, tensor_bytes, world_size)

    def clear(self) -> None:
        """Forget everything so far."""
        self.by_site.clear()

    def check_integrity(self) -> None:
        """Assert that every site sent exactly what was planned."""
        for site, entry in self.by_site.items():
            # Sums of (W-1)/W parts of integers: equal up to rounding of the division.
            assert abs(entry.planned - entry.counted) <= 1e-6 * max(1.0, entry.planned), (site, entry)
