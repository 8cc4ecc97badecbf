"""The declared figures as Prometheus' families, at the moment of a scrape."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from evenflow.serving.server.interfaces import Engine
from evenflow.serving.server.metrics.adapter_figures import TOTALS as ADAPTER_TOTALS
from evenflow.serving.server.metrics.adapter_figures import totals_by_name
from evenflow.serving.server.metrics.client_figures import TOTALS as CLIENT_TOTALS
from evenflow.serving.server.metrics.figure import Figure, Kind, Scrape, Server
from evenflow.serving.server.metrics.reference import SOURCED_FIGURES
from evenflow.serving.server.metrics.topk import TopK


class SnapshotSeries(Collector):
    """Reads the engine's latest snapshot; keeps only what bounded cardinality needs."""

    def __init__(
        self, engine: Engine, vllm_labels: tuple[str, ...], version: str, top_k: int, unix_time: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._vllm_labels = vllm_labels
        self._version = version
        self._unix_time = unix_time
        self.clients = TopK(top_k, len(CLIENT_TOTALS))
        self.adapters = TopK(top_k, len(ADAPTER_TOTALS))
        self.server = Server()
        """What the HTTP server knows; set before each scrape."""

    def update(self) -> tuple[list[str], list[str]]:
        """Take the snapshot's counters. Returns clients and adapters that no longer have series of their own."""
        stats = self._engine.stats
        clients = {name: tuple(value(c) for _, _, value in CLIENT_TOTALS) for name, c in stats.clients.items()}
        return self.clients.update(clients), self.adapters.update(totals_by_name(stats.adapters))

    def collect(self) -> Iterator[Metric]:
        """All series of the latest snapshot."""
        engine = self._engine
        scrape = Scrape(
            engine.stats,
            engine.info if engine.is_ready else None,
            self.clients,
            self.adapters,
            self.server,
            self._version,
            self._unix_time(),
        )
        for figure in SOURCED_FIGURES:
            yield self._family(figure, scrape)

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not read the engine to know the names."""
        return []

    def _family(self, figure: Figure, scrape: Scrape) -> Metric:
        first = self._vllm_labels if figure.name.startswith("vllm:") else ()
        labels = list(figure.all_labels)
        if figure.histogram_source is not None:
            histogram = figure.histogram_source(scrape)
            ends = [*(str(float(end)) for end in histogram.ends), "+Inf"]
            buckets = list(zip(ends, itertools.accumulate(histogram.counts), strict=True))
            whole = HistogramMetricFamily(figure.name, figure.help, labels=labels)
            whole.add_metric(list(first), buckets, histogram.total)
            return whole
        kind = CounterMetricFamily if figure.kind is Kind.COUNTER else GaugeMetricFamily
        family: CounterMetricFamily | GaugeMetricFamily = kind(figure.name, figure.help, labels=labels)
        assert figure.source is not None, f"{figure.name} has no source"
        for values, value in figure.source(scrape):
            family.add_metric([*first, *values], value)
        return family
