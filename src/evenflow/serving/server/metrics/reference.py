"""All figures of /metrics, and the rows of their reference."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from evenflow.serving.server.metrics.adapter_figures import ADAPTER_FIGURES
from evenflow.serving.server.metrics.client_figures import CLIENT_FIGURES
from evenflow.serving.server.metrics.engine_figures import ENGINE_FIGURES, VLLM_FIGURES
from evenflow.serving.server.metrics.figure import Figure
from evenflow.serving.server.metrics.observed_figures import OBSERVED_FIGURES
from evenflow.serving.server.metrics.server_figures import SERVER_FIGURES

SOURCED_FIGURES: tuple[Figure, ...] = (*VLLM_FIGURES, *ENGINE_FIGURES, *CLIENT_FIGURES, *ADAPTER_FIGURES, *SERVER_FIGURES)
"""Read at each scrape."""
FIGURES: tuple[Figure, ...] = (*SOURCED_FIGURES, *OBSERVED_FIGURES)


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One metric, for the reference page."""

    name: str
    """As it stands on the page; of a histogram without ``_bucket``, ``_sum`` and ``_count``."""
    kind: str
    labels: tuple[str, ...]
    help: str


def reference_rows() -> list[ReferenceRow]:
    """Every metric of the page by name: vLLM's, our own, and the process's (the HTTP server's, not the engine's)."""
    rows = [ReferenceRow(figure.exposed_name, figure.kind.value, figure.all_labels, figure.help) for figure in FIGURES]
    registry = CollectorRegistry()
    for collector in process_collectors(registry):
        for metric in collector.collect():
            labels = tuple(dict.fromkeys(label for sample in metric.samples for label in sample.labels))
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            rows.append(ReferenceRow(name, metric.type, labels, metric.documentation))
    return sorted(rows, key=lambda row: row.name)


def process_collectors(registry: CollectorRegistry) -> list[Collector]:
    """prometheus_client's own figures of this process (``process_*``, ``python_*``), registered in ``registry``."""
    return [ProcessCollector(registry=registry), PlatformCollector(registry=registry), GCCollector(registry=registry)]
