"""One second of a server as the console shows it: figures of the whole, and rows of its clients.

Sums and counters are totals since the engine started; what happens in a second is the difference of two steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from evenflow.serving.client.messages import ClientStats, EngineStats

MOST_ROWS = 20
"""Clients with a row of their own; what is left is summed."""
PERCENTILES = (0.5, 0.95)


class ClientRow(msgspec.Struct, array_like=True):
    """One client, or the sum of those that have no row."""

    name: str
    weight: float
    service: float
    virtual_counter: float | None
    num_waiting: int
    num_running: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    num_rejected: int
    """Since the first page was opened."""
    ttft_s: list[float]
    """PERCENTILES of the first tokens of this second; empty: there were none."""


class Whole(msgspec.Struct):
    """What only administrators see: figures that all clients share."""

    waiting: int
    running: int
    pages: int
    free: int
    kv: int
    prefixes: int
    adapters: int
    resident: int
    host: int
    pinned: int
    registered: int
    loads: int
    evictions: int
    loaded_bytes: int
    shed: int
    rejected: int
    preempted: int
    steps: int
    prompt_tokens: int
    completion_tokens: int
    ttft_s: list[float]
    num_clients: int
    others: ClientRow | None = None


class Step(msgspec.Struct):
    """One second. ``whole`` is None in what a client is sent, and ``rows`` then has its own row alone."""

    t: float
    """Seconds since 1970 by a clock that never jumps."""
    rows: list[ClientRow]
    whole: Whole | None = None


class Heard(msgspec.Struct):
    """What was observed of requests since the last step; rejections since the first page was opened."""

    ttft_s: dict[str, list[float]]
    num_rejected: Mapping[str, int]


def percentiles(values: Sequence[float]) -> list[float]:
    """PERCENTILES of ``values``, by nearest rank; empty for none."""
    ordered = sorted(values)
    return [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in PERCENTILES] if ordered else []


def make_step(t: float, stats: EngineStats, heard: Heard, watched: Collection[str]) -> tuple[Step, dict[str, ClientRow]]:
    """The step that administrators see, and the rows of ``watched`` clients, of whom a page is open."""
    shown = heapq.nlargest(MOST_ROWS, stats.clients, key=lambda name: (stats.clients[name].service, name))

    def row(name: str) -> ClientRow:
        own = stats.clients.get(name, ClientStats())
        return _row(name, own, heard.num_rejected.get(name, 0), heard.ttft_s.get(name, ()))

    rows = [row(name) for name in shown]
    in_rows = set(shown)
    rest = [name for name in stats.clients if name not in in_rows]
    others = _sum([row(name) for name in rest]) if rest else None
    whole = Whole(
        waiting=stats.num_waiting,
        running=stats.num_running,
        pages=stats.num_pages,
        free=stats.num_free_pages,
        kv=stats.num_kv_pages,
        prefixes=stats.num_idle_cache_pages,
        adapters=stats.num_adapter_pages,
        resident=stats.num_resident_adapters,
        host=stats.num_host_adapters,
        pinned=stats.num_pinned_adapters,
        registered=stats.num_adapters,
        loads=stats.num_adapter_loads,
        evictions=stats.num_adapter_evictions,
        loaded_bytes=stats.loaded_adapter_bytes,
        shed=stats.num_shed,
        rejected=sum(heard.num_rejected.values()),
        preempted=stats.num_preemptions,
        steps=stats.num_steps,
        prompt_tokens=stats.prompt_tokens,
        completion_tokens=stats.completion_tokens,
        ttft_s=percentiles([value for values in heard.ttft_s.values() for value in values]),
        num_clients=len(stats.clients),
        others=others,
    )
    return Step(t, rows, whole), {name: row(name) for name in watched}


def _row(name: str, own: ClientStats, num_rejected: int, ttft_s: Iterable[float]) -> ClientRow:
    return ClientRow(
        name,
        own.weight,
        own.service,
        own.virtual_counter,
        own.num_waiting,
        own.num_running,
        own.prompt_tokens,
        own.completion_tokens,
        own.cached_tokens,
        num_rejected,
        percentiles(list(ttft_s)),
    )


def _sum(rows: Sequence[ClientRow]) -> ClientRow:
    return ClientRow(
        "",
        sum(row.weight for row in rows),
        sum(row.service for row in rows),
        None,
        sum(row.num_waiting for row in rows),
        sum(row.num_running for row in rows),
        sum(row.prompt_tokens for row in rows),
        sum(row.completion_tokens for row in rows),
        sum(row.cached_tokens for row in rows),
        sum(row.num_rejected for row in rows),
        [],
    )
