"""One second of the server as the console shows it: what an administrator sees, and what one client may see of it."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from evenflow.serving.client.messages import ClientStats, EngineStats

OTHERS = "others"
"""Those beyond the largest, added up. A client may have this name, too: the row that adds up has ``num_clients`` above 1."""


class ClientRow(msgspec.Struct, array_like=True):
    """One client, or all the others, since the engine started. An array in this order, because a page holds 900 steps."""

    name: str
    weight: float | None
    """None for those added up."""
    service: float
    """What the policy charged."""
    num_running: int
    num_waiting: int
    virtual_counter: float | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    first_tokens_s: list[float]
    """Seconds from arrival to first token of the requests that had theirs since the last step: lowest, median, 99 %."""
    num_rejected: int
    num_clients: int = 1


class Pages(msgspec.Struct):
    """The arena's pages by owner; they add up to all of them."""

    free: int
    kv: int
    """Keys and values of running requests."""
    prefixes: int
    """Kept by the prefix cache, used by nobody now."""
    adapters: int


class Step(msgspec.Struct, omit_defaults=True):
    """What happened until one moment. Totals count from the engine's start."""

    unix_s: float
    clients: list[ClientRow]
    policy: str = ""
    num_running: int = 0
    num_waiting: int = 0
    waiting_by_reason: dict[str, int] = {}
    tokens_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    step_s: float = 0.0
    num_preemptions: int = 0
    num_shed: int = 0
    num_rejected: int = 0
    pages: Pages | None = None
    """None for those who are no administrators."""
    num_adapters: int = 0
    num_resident: int = 0
    num_host: int = 0
    num_loads: int = 0
    num_evictions: int = 0
    loaded_bytes: int = 0
    is_draining: bool = False


class Observed(msgspec.Struct):
    """What the server saw of one client since the last step, and how many of its requests it has turned away so far."""

    first_tokens_s: list[float] = []
    num_rejected: int = 0


def whole_step(
    stats: EngineStats,
    observed: Mapping[str, Observed],
    weights: Mapping[str, float],
    unix_s: float,
    *,
    top: int,
    is_draining: bool = False,
) -> Step:
    """Return what an administrator sees: the ``top`` clients by service, and the others added up.

    ``weights``: of the clients that the operator named; they are shown although they have asked for nothing yet.
    """
    names = {*stats.clients, *observed, *weights}
    largest = heapq.nsmallest(top, names, key=lambda name: (-_service(stats, name), name))
    rows = [_row(name, stats, observed, weights) for name in largest]
    if len(names) > top:
        rows.append(_added_up([_row(name, stats, observed, weights) for name in names.difference(largest)]))
    cached = stats.num_idle_cache_pages
    return Step(
        unix_s=unix_s,
        clients=rows,
        policy=stats.policy,
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        waiting_by_reason=stats.num_waiting_by_reason,
        tokens_per_s=stats.tokens_per_s,
        prompt_tokens_per_s=stats.prompt_tokens_per_s,
        step_s=stats.step_s,
        num_preemptions=stats.num_preemptions,
        num_shed=stats.num_shed,
        num_rejected=sum(seen.num_rejected for seen in observed.values()),
        pages=Pages(stats.num_free_pages, max(0, stats.num_kv_pages - cached), cached, stats.num_adapter_pages),
        num_adapters=stats.num_adapters,
        num_resident=stats.num_resident_adapters,
        num_host=stats.num_host_adapters,
        num_loads=stats.num_adapter_loads,
        num_evictions=stats.num_adapter_evictions,
        loaded_bytes=stats.loaded_adapter_bytes,
        is_draining=is_draining,
    )


def own_step(
    stats: EngineStats, observed: Mapping[str, Observed], weight: float, unix_s: float, name: str, *, is_draining: bool = False
) -> Step:
    """Return what the client of that name sees: itself, and nothing that tells of others."""
    row = _row(name, stats, observed, {name: weight})
    return Step(
        unix_s=unix_s,
        clients=[row],
        num_running=row.num_running,
        num_waiting=row.num_waiting,
        num_rejected=row.num_rejected,
        is_draining=is_draining,
    )


def _service(stats: EngineStats, name: str) -> float:
    return stats.clients[name].service if name in stats.clients else 0.0


def _row(name: str, stats: EngineStats, observed: Mapping[str, Observed], weights: Mapping[str, float]) -> ClientRow:
    client = stats.clients.get(name) or ClientStats(weight=weights.get(name, 1.0))
    seen = observed.get(name) or Observed()
    return ClientRow(
        name,
        client.weight,
        client.service,
        client.num_running,
        client.num_waiting,
        client.virtual_counter,
        client.prompt_tokens,
        client.completion_tokens,
        client.cached_tokens,
        spread(seen.first_tokens_s),
        seen.num_rejected,
    )


def _added_up(rows: Sequence[ClientRow]) -> ClientRow:
    lows = [row.first_tokens_s for row in rows if row.first_tokens_s]
    return ClientRow(
        OTHERS,
        None,
        sum(row.service for row in rows),
        sum(row.num_running for row in rows),
        sum(row.num_waiting for row in rows),
        None,
        sum(row.prompt_tokens for row in rows),
        sum(row.completion_tokens for row in rows),
        sum(row.cached_tokens for row in rows),
        [min(low[0] for low in lows), statistics.median_low(low[1] for low in lows), max(low[2] for low in lows)]
        if lows
        else [],
        sum(row.num_rejected for row in rows),
        len(rows),
    )


def spread(seconds: Iterable[float]) -> list[float]:
    """Return [lowest, median, 99th percentile], by nearest rank; empty if there are none."""
    ordered = sorted(seconds)
    if not ordered:
        return []
    return [round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4) for share in (0.0, 0.5, 0.99)]
