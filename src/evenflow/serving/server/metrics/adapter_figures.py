"""Figures of each adapter by name. Cardinality is bounded: the busiest have series of their own, the rest is ``other``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from evenflow.serving.client.messages import AdapterStats
from evenflow.serving.server.metrics.figure import Figure, Kind, Scrape, by_label

TOTALS: tuple[tuple[str, str, Callable[[AdapterStats], float]], ...] = (
    ("evenflow_adapter_completion_tokens", "Output tokens.", lambda adapter: adapter.completion_tokens),
    ("evenflow_adapter_prompt_tokens", "Prompt tokens computed.", lambda adapter: adapter.prompt_tokens),
    ("evenflow_adapter_loads", "Copies into the arena.", lambda adapter: adapter.num_loads),
    ("evenflow_adapter_cached_tokens", "Prompt tokens found in the prefix cache.", lambda adapter: adapter.cached_tokens),
)
"""Name, help and source of the counters; the first one measures who is busiest."""


def totals_by_name(adapters: Mapping[str, AdapterStats]) -> dict[str, tuple[float, ...]]:
    """The counters of each name, in the order of TOTALS: one name may stand for several digests, after a reload."""
    sums: dict[str, list[float]] = {}
    for adapter in adapters.values():
        of_name = sums.setdefault(adapter.name, [0.0] * len(TOTALS))
        for index, (_, _, value) in enumerate(TOTALS):
            of_name[index] += value(adapter)
    return {name: tuple(of_name) for name, of_name in sums.items()}


def _total(index: int) -> Callable[[Scrape], Iterable[tuple[str, float]]]:
    return lambda scrape: [(label, totals[index]) for label, totals in scrape.adapters.totals.items()]


def _sum(value: Callable[[AdapterStats], float]) -> Callable[[Scrape], Iterable[tuple[str, float]]]:
    def values(scrape: Scrape) -> Iterable[tuple[str, float]]:
        sums: dict[str, float] = {}
        for adapter in scrape.stats.adapters.values():
            label = scrape.adapters.label(adapter.name)
            sums[label] = sums.get(label, 0.0) + value(adapter)
        return sums.items()

    return values


ADAPTER_FIGURES: tuple[Figure, ...] = (
    *(by_label(name, Kind.COUNTER, text, "adapter", _total(index)) for index, (name, text, _) in enumerate(TOTALS)),
    by_label(
        "evenflow_adapter_requests_waiting",
        Kind.GAUGE,
        "Requests that wait.",
        "adapter",
        _sum(lambda adapter: adapter.num_waiting),
    ),
    by_label(
        "evenflow_adapter_requests_running",
        Kind.GAUGE,
        "Requests in the batch.",
        "adapter",
        _sum(lambda adapter: adapter.num_running),
    ),
    by_label("evenflow_adapter_resident", Kind.GAUGE, "1: in the arena.", "adapter", _sum(lambda adapter: adapter.is_resident)),
)
