"""Figures of each client. Cardinality is bounded: the busiest have series of their own, the rest is ``other``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from evenflow.serving.client.messages import ClientStats
from evenflow.serving.server.metrics.figure import Figure, Kind, Scrape, by_label
from evenflow.serving.server.metrics.topk import OTHER

TOTALS: tuple[tuple[str, str, Callable[[ClientStats], float]], ...] = (
    ("evenflow_client_service", "Service that the policy charged, in its own unit.", lambda client: client.service),
    ("evenflow_client_prompt_tokens", "Prompt tokens computed.", lambda client: client.prompt_tokens),
    ("evenflow_client_completion_tokens", "Output tokens.", lambda client: client.completion_tokens),
    ("evenflow_client_cached_tokens", "Prompt tokens found in the prefix cache.", lambda client: client.cached_tokens),
)
"""Name, help and source of the counters; the first one measures who is busiest."""


def _total(index: int) -> Callable[[Scrape], Iterable[tuple[str, float]]]:
    return lambda scrape: [(label, totals[index]) for label, totals in scrape.clients.totals.items()]


def _sum(value: Callable[[ClientStats], float]) -> Callable[[Scrape], Iterable[tuple[str, float]]]:
    def values(scrape: Scrape) -> Iterable[tuple[str, float]]:
        sums: dict[str, float] = {}
        for name, client in scrape.stats.clients.items():
            label = scrape.clients.label(name)
            sums[label] = sums.get(label, 0.0) + value(client)
        return sums.items()

    return values


def _of_those_shown(value: Callable[[ClientStats], float | None]) -> Callable[[Scrape], Iterable[tuple[str, float]]]:
    """What cannot be summed is told of those only that have series of their own."""

    def values(scrape: Scrape) -> Iterable[tuple[str, float]]:
        for name, client in scrape.stats.clients.items():
            if scrape.clients.label(name) != OTHER and (shown := value(client)) is not None:
                yield name, shown

    return values


CLIENT_FIGURES: tuple[Figure, ...] = (
    *(by_label(name, Kind.COUNTER, text, "client", _total(index)) for index, (name, text, _) in enumerate(TOTALS)),
    by_label(
        "evenflow_client_requests_waiting", Kind.GAUGE, "Requests that wait.", "client", _sum(lambda client: client.num_waiting)
    ),
    by_label(
        "evenflow_client_requests_running",
        Kind.GAUGE,
        "Requests in the batch.",
        "client",
        _sum(lambda client: client.num_running),
    ),
    by_label(
        "evenflow_client_virtual_counter",
        Kind.GAUGE,
        "The policy's counter of a client.",
        "client",
        _of_those_shown(lambda client: client.virtual_counter),
    ),
    by_label(
        "evenflow_client_weight",
        Kind.GAUGE,
        "The client's own weight times its tier's; under the policy hierarchy tiers share first.",
        "client",
        _of_those_shown(lambda client: client.weight),
    ),
)
