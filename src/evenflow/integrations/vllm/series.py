"""The figures of engines as Prometheus series: the names of EvenFlow's own server, with vLLM's label ``engine``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from evenflow.fairness.books.cost import WeightedTokens
from evenflow.integrations.vllm.tally import Tally

COUNTERS = (
    ("prompt_tokens", "prompt_tokens", "Prompt tokens computed."),
    ("completion_tokens", "completion_tokens", "Output tokens."),
    ("cached_tokens", "cached_tokens", "Prompt tokens found in the prefix cache."),
    ("recomputed_tokens", "recomputed_tokens", "Tokens computed again after a preemption, charged to nobody."),
    ("requests", "num_ended", "Requests that have ended."),
    ("preemptions", "num_preemptions", "Preemptions."),
    ("answered", "num_answered", "Requests whose first token is out."),
    ("ttft_seconds", "ttft_s", "Seconds from arrival in the engine to the first token, summed over those answered."),
)
GAUGES = (
    ("requests_waiting", "num_waiting", "Requests that wait."),
    ("requests_running", "num_running", "Requests in the batch."),
)
PLACES = {field.name: place for place, field in enumerate(fields(Tally))}

Figures = tuple[int, dict[str, Any]]
"""Number of the engine, and what it has published."""


class ClientSeries:
    """A collector for ``prometheus_client``: reads the engines' figures when it is asked."""

    def __init__(self, read: Callable[[], Iterable[Figures]]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry need not ask for figures to know the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All series."""
        engines = list(self._read())
        for kind, key in (("client", "clients"), ("adapter", "adapters")):
            for name, attribute, text in COUNTERS:
                counter = CounterMetricFamily(f"evenflow_{kind}_{name}", text, labels=[kind, "engine"])
                yield _filled(counter, engines, key, attribute)
            for name, attribute, text in GAUGES:
                gauge = GaugeMetricFamily(f"evenflow_{kind}_{name}", text, labels=[kind, "engine"])
                yield _filled(gauge, engines, key, attribute)
        yield from self._of_policy(engines)

    @staticmethod
    def _of_policy(engines: list[Figures]) -> Iterator[Metric]:
        price = WeightedTokens()
        service = CounterMetricFamily(
            "evenflow_client_service", "Service received: prompt + 2 x output + cached / 10.", labels=["client", "engine"]
        )
        virtual = GaugeMetricFamily(
            "evenflow_client_virtual_counter", "The policy's counter of a client.", labels=["client", "engine"]
        )
        faults = CounterMetricFamily(
            "evenflow_books_faults",
            "Steps that were scheduled first come, first served, because the books had failed.",
            labels=["engine"],
        )
        for engine, figures in engines:
            for name, values in figures["clients"].items():
                tokens = (values[PLACES[a]] for a in ("prompt_tokens", "completion_tokens", "cached_tokens"))
                service.add_metric([name, str(engine)], price(*tokens))
                if name in figures["counters"]:
                    virtual.add_metric([name, str(engine)], figures["counters"][name])
            faults.add_metric([str(engine)], figures["num_faults"])
        yield from (service, virtual, faults)


def _filled(family: Any, engines: list[Figures], key: str, attribute: str) -> Metric:
    for engine, figures in engines:
        for name, values in figures[key].items():
            family.add_metric([name, str(engine)], values[PLACES[attribute]])
    metric: Metric = family
    return metric
