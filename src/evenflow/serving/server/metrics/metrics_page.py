"""The page that Prometheus reads, and what the server observes for it of each request.

Which metrics there are is declared elsewhere: reference.py lists all. Cardinality is bounded by topk.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, generate_latest

from evenflow.base.errors import BudgetSpent, ClientOverLimit, Rejected, SLOUnreachable
from evenflow.serving.client.messages import Usage
from evenflow.serving.server.interfaces import Engine
from evenflow.serving.server.metrics import observed_figures as figures
from evenflow.serving.server.metrics.figure import Figure, Kind, Server
from evenflow.serving.server.metrics.reference import process_collectors
from evenflow.serving.server.metrics.snapshot_series import SnapshotSeries
from evenflow.serving.server.metrics.topk import OTHER

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ENGINE = "0"
REJECTION_REASONS = ("queue_full", "client_limit", "budget", "slo")
_REASONS = ((SLOUnreachable, "slo"), (BudgetSpent, "budget"), (ClientOverLimit, "client_limit"))
FINISHED_REASONS = ("stop", "length", "abort", "error")

Instrument = Counter | prometheus_client.Histogram


class Listener(Protocol):
    """Hears what is observed, as it happens; cheap, as it is called in the path of answers."""

    def first_token(self, client: str, seconds: float) -> None:
        """A completion had its first token, so many seconds after it arrived."""
        ...

    def rejected(self, client: str) -> None:
        """A request was turned away."""
        ...


class Metrics:
    """Owns one registry. One event loop."""

    def __init__(
        self, engine: Engine, model_name: str, version: str, top_k: int, unix_time: Callable[[], float] = time.time
    ) -> None:
        self.listener: Listener | None = None
        """While somebody looks at the console."""
        self._registry = CollectorRegistry()
        self._vllm_labels = (model_name, ENGINE)
        self._instruments = {figure.name: self._instrument(figure) for figure in figures.OBSERVED_FIGURES}
        self._series: dict[str, Instrument] = {}
        """Those without labels of their own, which are observed at every token."""
        for figure in figures.OBSERVED_FIGURES:
            if not figure.labels:
                self._series[figure.name] = self._labelled(figure)
        for reason in FINISHED_REASONS:
            self._labelled(figures.FINISHED, reason)
        for reason in REJECTION_REASONS:
            self._labelled(figures.REJECTIONS, reason)
        self._snapshot = SnapshotSeries(engine, self._vllm_labels, version, top_k, unix_time)
        self._registry.register(self._snapshot)
        process_collectors(self._registry)

    def rejected(self, client: str, error: Rejected) -> None:
        """A request was turned away."""
        if self.listener is not None:
            self.listener.rejected(client)
        reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), "queue_full")
        self._count(figures.REJECTIONS, 1, reason)
        self._count(figures.CLIENT_REJECTIONS, 1, self._snapshot.clients.label(client), reason)

    def first_token(self, client: str, adapter: str | None, seconds: float) -> None:
        """A completion had its first token, so many seconds after it arrived."""
        if self.listener is not None:
            self.listener.first_token(client, seconds)
        self._observe(figures.TIME_TO_FIRST_TOKEN, seconds)
        self._observe(figures.CLIENT_TTFT, seconds, self._snapshot.clients.label(client))
        if adapter is not None:
            self._observe(figures.ADAPTER_TTFT, seconds, self._snapshot.adapters.label(adapter))

    def token_gap(self, seconds: float) -> None:
        """A completion had a further token."""
        self._observe(figures.TOKEN_GAP, seconds)

    def finished(self, usage: Usage, reason: str, e2e_s: float, max_tokens: int | None, n: int) -> None:
        """A completion ended by itself."""
        self._count(figures.FINISHED, 1, reason if reason in FINISHED_REASONS else "error")
        for figure, value in (
            (figures.E2E, e2e_s),
            (figures.QUEUE_TIME, usage.queue_s),
            (figures.INFERENCE_TIME, usage.prefill_s + usage.decode_s),
            (figures.PREFILL_TIME, usage.prefill_s),
            (figures.DECODE_TIME, usage.decode_s),
            (figures.PROMPT_TOKENS, usage.prompt_tokens),
            (figures.GENERATION_TOKENS, usage.completion_tokens),
            (figures.MOST_GENERATION_TOKENS, usage.completion_tokens),
            (figures.PARAMS_N, n),
            (figures.NUM_PREEMPTIONS, usage.num_preemptions),
        ):
            self._observe(figure, value)
        if usage.completion_tokens > 1:
            self._observe(figures.TIME_PER_OUTPUT_TOKEN, usage.decode_s / (usage.completion_tokens - 1))
        if max_tokens is not None:
            self._observe(figures.PARAMS_MAX_TOKENS, max_tokens)

    def cut_short(self, reason: str, num_completions: int) -> None:
        """Completions that were submitted ended early: "abort" (their client is gone) or "error"."""
        self._count(figures.FINISHED, num_completions, reason)

    def render(self, server: Server | None = None) -> bytes:
        """The text exposition. ``server``: what the HTTP server knows of itself."""
        self._snapshot.server = server or Server()
        clients, adapters = self._snapshot.update()
        for name in clients:
            self._forget(figures.CLIENT_TTFT, name)
            for reason in REJECTION_REASONS:
                self._forget(figures.CLIENT_REJECTIONS, name, reason)
        for name in adapters:
            self._forget(figures.ADAPTER_TTFT, name)
        return generate_latest(self._registry)

    def _instrument(self, figure: Figure) -> Instrument:
        if figure.kind is Kind.COUNTER:
            return Counter(figure.name, figure.help, figure.all_labels, registry=self._registry)
        return prometheus_client.Histogram(
            figure.name, figure.help, figure.all_labels, buckets=figure.buckets, registry=self._registry
        )

    def _labelled(self, figure: Figure, *labels: str) -> Instrument:
        if figure.name in self._series:
            return self._series[figure.name]
        first = self._vllm_labels if figure.name.startswith("vllm:") else ()
        return self._instruments[figure.name].labels(*first, *labels)

    def _observe(self, figure: Figure, value: float, *labels: str) -> None:
        instrument = self._labelled(figure, *labels)
        assert isinstance(instrument, prometheus_client.Histogram), f"{figure.name} is no histogram"
        instrument.observe(value)

    def _count(self, figure: Figure, amount: int, *labels: str) -> None:
        instrument = self._labelled(figure, *labels)
        assert isinstance(instrument, Counter), f"{figure.name} is no counter"
        instrument.inc(amount)

    def _forget(self, figure: Figure, *labels: str) -> None:
        if labels[0] != OTHER:
            self._instruments[figure.name].remove(*labels)
