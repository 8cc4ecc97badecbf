"""What a figure of /metrics is: declared once with its source, name, type, labels and help.

The page, its reference and the tests are made from these declarations; nothing else names a metric.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from evenflow.serving.client.messages import EngineStats, Ready
from evenflow.serving.server.http.connection_books import ConnectionBooks
from evenflow.serving.server.metrics.topk import TopK

VLLM_LABELS = ("model_name", "engine")
"""Labels of every series whose name begins with ``vllm:``: the base model's name and the number of the engine."""


class Kind(enum.StrEnum):
    """Prometheus' types. A counter is exposed with ``_total`` behind its name, a histogram with ``_bucket`` and others."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Server:
    """What the HTTP server itself knows at a scrape."""

    is_ready: bool = False
    num_in_flight: int = 0
    num_waiting: int = 0
    connections: ConnectionBooks = field(default_factory=ConnectionBooks)
    are_accounts_away: bool = False
    num_account_rows_waiting: int = 0
    num_account_failures: int = 0
    num_account_overflows: int = 0
    budget_parts: Sequence[tuple[str, float]] = ()
    """(client, used part of its budget of the month), the fullest first."""
    num_spans_sent: int = 0
    num_spans_lost: int = 0


@dataclass(frozen=True, slots=True)
class Scrape:
    """Everything that sources read, at one moment."""

    stats: EngineStats
    info: Ready | None
    """None until the engine is warm."""
    clients: TopK
    """Counters of clients, in the order of ``client_figures.TOTALS``."""
    adapters: TopK
    """Counters of adapters by name, in the order of ``adapter_figures.TOTALS``."""
    server: Server
    version: str
    unix_time_s: float


Series = Iterable[tuple[tuple[str, ...], float]]
"""(values of the figure's own labels, value) for each series."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """A histogram as a source gives it: counts of each bucket on its own, the last of them without an upper end."""

    ends: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    """Sum of what was counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One metric. Without a ``source`` it is observed as things happen (observed_figures.py)."""

    name: str
    """Without the suffix that its type adds."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    """Its own; names that begin with ``vllm:`` have VLLM_LABELS before them."""
    source: Callable[[Scrape], Series] | None = None
    histogram_source: Callable[[Scrape], Histogram] | None = None
    buckets: tuple[float, ...] = ()
    """Upper ends, of a histogram that is observed."""

    @property
    def all_labels(self) -> tuple[str, ...]:
        """Labels in their order on the page."""
        return (*VLLM_LABELS, *self.labels) if self.name.startswith("vllm:") else self.labels

    @property
    def exposed_name(self) -> str:
        """The name as it stands on the page and in queries; a histogram's without ``_bucket``."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


def gauge(name: str, help: str, value: Callable[[Scrape], float]) -> Figure:
    """A gauge of one series."""
    return Figure(name=name, kind=Kind.GAUGE, help=help, source=lambda scrape: (((), value(scrape)),))


def counter(name: str, help: str, value: Callable[[Scrape], float]) -> Figure:
    """A counter of one series."""
    return Figure(name=name, kind=Kind.COUNTER, help=help, source=lambda scrape: (((), value(scrape)),))


def by_label(name: str, kind: Kind, help: str, label: str, values: Callable[[Scrape], Iterable[tuple[str, float]]]) -> Figure:
    """A figure with one series for each value of ``label``."""
    return Figure(
        name=name,
        kind=kind,
        help=help,
        labels=(label,),
        source=lambda scrape: [((name,), value) for name, value in values(scrape)],
    )
