"""When adapters were copied into the arena: written only in steps that copy some, read once for each request."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.serving.core.plan import AdapterLoad
from evenflow.serving.core.request import AdapterDigest, Request

MOST_ADAPTERS = 4096
"""Whose last load is kept; that of the one that was loaded longest ago is forgotten."""


class LoadTimes:
    """The last load of each adapter, as (start, end) of the engine's clock, in seconds."""

    def __init__(self) -> None:
        self._last: dict[AdapterDigest, tuple[float, float]] = {}

    def note(self, loads: Sequence[AdapterLoad], began_s: float, loading_s: float, ended_s: float) -> None:
        """A step carried out ``loads``: what it needed itself in its first ``loading_s``, prefetches until its end."""
        for load in loads:
            start_s = self._last[load.digest][0] if load.first and load.digest in self._last else began_s
            self._last.pop(load.digest, None)
            self._last[load.digest] = start_s, ended_s if load.is_prefetch else began_s + loading_s
        while len(self._last) > MOST_ADAPTERS:
            del self._last[next(iter(self._last))]

    def during(self, request: Request) -> tuple[float, float]:
        """(Arrival to the start of its adapter's load, seconds that it took) if that fell between arrival and first token.

        A load that began for somebody else before the request arrived counts from its arrival; (0, 0): there was none.
        """
        start_s, end_s = self._last.get(request.adapter, (0.0, 0.0)) if request.adapter is not None else (0.0, 0.0)
        if end_s <= request.arrival_s or (request.first_token_s is not None and start_s >= request.first_token_s):
            return 0.0, 0.0
        start_s = max(start_s, request.arrival_s)
        return start_s - request.arrival_s, end_s - start_s


__all__ = ["LoadTimes"]
