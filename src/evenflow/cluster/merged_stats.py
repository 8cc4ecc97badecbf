"""The snapshots of several engines as one: what is counted is added up, what is a rate of all as well."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from evenflow.serving.client.messages import AdapterInfo, AdapterStats, ClientStats, EngineStats, WireStats

_OF_ANY = ("policy", "page_tokens", "caches_prefixes")
_LARGEST = ("time_s", "num_adapters", "adapter_bytes")
"""Every engine has the same adapters registered."""
_BEST_FIRST = ("resident", "host", "disk", "draining")


def merge_stats(stats: Sequence[EngineStats]) -> EngineStats:
    """Return one snapshot of all; the first one's policy and page size."""
    if not stats:
        return EngineStats()
    merged: dict[str, Any] = {}
    for name in EngineStats.__struct_fields__:
        values = [getattr(each, name) for each in stats]
        if name in _OF_ANY:
            merged[name] = values[0]
        elif name in _LARGEST:
            merged[name] = max(values)
        elif name == "step_s":
            merged[name] = statistics.median(values)
        elif name == "clients":
            merged[name] = _by_key(values, _merge_clients)
        elif name == "adapters":
            merged[name] = _by_key(values, _merge_adapters)
        elif name == "wire":
            merged[name] = _by_key(values, _merge_wire)
        elif name == "num_waiting_by_reason":
            merged[name] = _by_key(values, sum)
        elif name == "num_steps_by_tokens":
            merged[name] = [sum(counts) for counts in zip(*filter(None, values), strict=True)]
        elif isinstance(values[0], list):
            merged[name] = sorted(set().union(*values))
        else:
            merged[name] = sum(values)
    return EngineStats(**merged)


def merge_adapters(tables: Sequence[Sequence[AdapterInfo]]) -> list[AdapterInfo]:
    """One entry for each name and digest: requests and loads of all engines, and the best state it has anywhere."""
    merged: dict[tuple[str, str, bool], AdapterInfo] = {}
    for info in (info for table in tables for info in table):
        key = (info.name, info.digest, info.state == "draining")
        before = merged.get(key)
        if before is None:
            merged[key] = msgspec.structs.replace(info)
            continue
        before.state = min(before.state, info.state, key=_BEST_FIRST.index)
        before.is_pinned = before.is_pinned or info.is_pinned
        before.in_flight += info.in_flight
        before.num_loads += info.num_loads
        before.num_pages = max(before.num_pages, info.num_pages)
    return list(merged.values())


def _by_key(tables: Sequence[dict[str, Any]], merge: Callable[[list[Any]], Any]) -> dict[str, Any]:
    collected: dict[str, list[Any]] = {}
    for table in tables:
        for key, value in table.items():
            collected.setdefault(key, []).append(value)
    return {key: merge(values) for key, values in collected.items()}


def _merge_clients(stats: list[ClientStats]) -> ClientStats:
    counters = [each.virtual_counter for each in stats if each.virtual_counter is not None]
    return ClientStats(
        sum(each.num_waiting for each in stats),
        sum(each.num_running for each in stats),
        sum(each.prompt_tokens for each in stats),
        sum(each.completion_tokens for each in stats),
        sum(each.service for each in stats),
        max(counters, default=None),
        stats[0].weight,
        sum(each.cached_tokens for each in stats),
    )


def _merge_adapters(stats: list[AdapterStats]) -> AdapterStats:
    return AdapterStats(
        stats[0].name,
        sum(each.num_waiting for each in stats),
        sum(each.num_running for each in stats),
        sum(each.prompt_tokens for each in stats),
        sum(each.completion_tokens for each in stats),
        sum(each.num_loads for each in stats),
        any(each.is_resident for each in stats),
        sum(each.cached_tokens for each in stats),
    )


def _merge_wire(stats: list[WireStats]) -> WireStats:
    return WireStats(
        sum(each.exchanges for each in stats),
        sum(each.planned_bytes for each in stats),
        sum(each.sent_bytes for each in stats),
    )
