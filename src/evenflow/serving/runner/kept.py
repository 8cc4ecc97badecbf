"""What is made of long lists of a request, made once and kept while the request is in the batch.

A bias for a thousand tokens is a list of a thousand pairs: made into a tensor again at every token it would cost the whole
batch more than the product that follows. Requests that share the list (completions of one prompt) share what is made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Things by the tuple they were made of. What was not asked for between two calls of ``next_step`` is dropped."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[tuple[object, ...], T]] = {}
        self._now: dict[int, tuple[tuple[object, ...], T]] = {}

    def next_step(self) -> None:
        """A step begins."""
        if self._now or self._last:
            self._last, self._now = self._now, {}

    def of(self, values: tuple[object, ...], make: Callable[[], T]) -> T:
        """Return what is made of ``values``, by its identity; ``make`` makes it the first time."""
        key = id(values)  # nobody else's while the entry holds on to it
        entry = self._now.get(key) or self._last.get(key) or (values, make())
        self._now[key] = entry
        return entry[1]


__all__ = ["Kept"]
