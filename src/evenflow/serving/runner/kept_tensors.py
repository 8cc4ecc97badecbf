"""Long lists of a request as tensors, made once and kept while the request is in the batch.

A bias for a thousand tokens is a list of a thousand pairs: made into a tensor again at every token it would cost the whole
batch more than the product that follows. Requests that share the list (completions of one prompt) share the tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensors = tuple[torch.Tensor, ...]


class KeptTensors:
    """Tensors by the tuple they were made of. What was not asked for between two calls of ``next_step`` is dropped."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[tuple[object, ...], Tensors]] = {}
        self._now: dict[int, tuple[tuple[object, ...], Tensors]] = {}

    def next_step(self) -> None:
        """A step begins."""
        self._last, self._now = self._now, {}

    def of(self, values: tuple[object, ...], make: Callable[[], Tensors]) -> Tensors:
        """The tensors of ``values``, by its identity; ``make`` makes them the first time."""
        key = id(values)  # nobody else's while the entry holds on to it
        entry = self._now.get(key) or self._last.get(key) or (values, make())
        self._now[key] = entry
        return entry[1]


__all__ = ["KeptTensors"]
