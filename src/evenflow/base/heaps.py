"""What heapq lacks."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item", bound=Any)


def ascending(heap: Sequence[Item]) -> Iterator[Item]:
    """The items of a list that ``heapq`` keeps, least first, leaving it as it is. O(k log k) for the first k."""
    frontier = [(heap[0], 0)] if heap else []
    while frontier:
        item, place = heapq.heappop(frontier)
        yield item
        for child in range(2 * place + 1, min(2 * place + 3, len(heap))):
            heapq.heappush(frontier, (heap[child], child))
