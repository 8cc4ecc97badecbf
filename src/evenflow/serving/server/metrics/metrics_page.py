"""What Prometheus reads: vLLM's names for gateways that know them, and our own per client and per adapter.

Two sources: the engine's snapshots (read at each scrape) and what this server sees of each request.
Metric names are listed in docs/reference/metrics.md. Cardinality is bounded by topk.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from evenflow.base.errors import ClientOverLimit, Rejected, SLOUnreachable
from evenflow.serving.client.messages import Usage
from evenflow.serving.server.interfaces import Engine
from evenflow.serving.server.metrics.engine_metrics import EngineMetrics
from evenflow.serving.server.metrics.topk import OTHER

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ENGINE = "0"
REJECTION_REASONS = ("queue_full", "client_limit", "slo")
FINISHED_REASONS = ("stop", "length", "abort", "error")

_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_CHOICES = (1, 2, 5, 10, 20, 50, 100)
_TTFT_OF_ONE = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
"""Fewer buckets: there is one set per client and per adapter."""

_HISTOGRAMS = {
    "time_to_first_token_seconds": ("Arrival to first token.", _SECONDS),
    "inter_token_latency_seconds": ("Between two tokens of a request.", _GAPS),
    "request_time_per_output_token_seconds": ("Decode time over output tokens after the first.", _GAPS),
    "e2e_request_latency_seconds": ("Arrival to last token.", _SECONDS),
    "request_queue_time_seconds": ("Arrival to first admission.", _SECONDS),
    "request_inference_time_seconds": ("Admission to last token.", _SECONDS),
    "request_prefill_time_seconds": ("Admission to first token.", _SECONDS),
    "request_decode_time_seconds": ("First token to last token.", _SECONDS),
    "request_prompt_tokens": ("Prompt tokens of a request.", _TOKENS),
    "request_generation_tokens": ("Output tokens of a request.", _TOKENS),
    "request_max_num_generation_tokens": ("Output tokens of a request, the most of its completions.", _TOKENS),
    "request_params_n": ("n of a request.", _CHOICES),
    "request_params_max_tokens": ("max_tokens of a request.", _TOKENS),
}


class Metrics:
    """Owns one registry. One event loop."""

    def __init__(
        self, engine: Engine, model_name: str, version: str, top_k: int, unix_time: Callable[[], float] = time.time
    ) -> None:
        self._registry = CollectorRegistry()
        self._vllm = {
            name: Histogram(f"vllm:{name}", text, ("model_name", "engine"), buckets=buckets, registry=self._registry).labels(
                model_name, ENGINE
            )
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        finished = Counter(
            "vllm:request_success",
            "Requests that ended, by reason.",
            ("model_name", "engine", "finished_reason"),
            registry=self._registry,
        )
        self._finished = {reason: finished.labels(model_name, ENGINE, reason) for reason in FINISHED_REASONS}
        rejections = Counter(
            "vllm:admission_rejections",
            "Requests that were turned away, by reason.",
            ("model_name", "engine", "reason"),
            registry=self._registry,
        )
        self._rejections = {reason: rejections.labels(model_name, ENGINE, reason) for reason in REJECTION_REASONS}
        self._client_rejections = Counter(
            "evenflow_client_rejections", "Requests turned away.", ("client", "reason"), registry=self._registry
        )
        self._client_ttft = Histogram(
            "evenflow_client_time_to_first_token_seconds",
            "Arrival to first token.",
            ("client",),
            buckets=_TTFT_OF_ONE,
            registry=self._registry,
        )
        self._adapter_ttft = Histogram(
            "evenflow_adapter_time_to_first_token_seconds",
            "Arrival to first token.",
            ("adapter",),
            buckets=_TTFT_OF_ONE,
            registry=self._registry,
        )
        self._engine_metrics = EngineMetrics(engine, model_name, ENGINE, version, top_k, unix_time)
        self._registry.register(_Snapshot(self._engine_metrics))

    def rejected(self, client: str, error: Rejected) -> None:
        """A request was turned away."""
        is_late = isinstance(error, SLOUnreachable)
        reason = "slo" if is_late else "client_limit" if isinstance(error, ClientOverLimit) else "queue_full"
        self._rejections[reason].inc()
        self._client_rejections.labels(self._engine_metrics.clients.label(client), reason).inc()

    def first_token(self, client: str, adapter: str | None, seconds: float) -> None:
        """A completion had its first token, so many seconds after it arrived."""
        self._vllm["time_to_first_token_seconds"].observe(seconds)
        self._client_ttft.labels(self._engine_metrics.clients.label(client)).observe(seconds)
        if adapter is not None:
            self._adapter_ttft.labels(self._engine_metrics.adapters.label(adapter)).observe(seconds)

    def token_gap(self, seconds: float) -> None:
        """A completion had a further token."""
        self._vllm["inter_token_latency_seconds"].observe(seconds)

    def finished(self, usage: Usage, reason: str, e2e_s: float, max_tokens: int | None, n: int) -> None:
        """A completion ended by itself."""
        self._finished[reason if reason in self._finished else "error"].inc()
        values: dict[str, float] = {
            "e2e_request_latency_seconds": e2e_s,
            "request_queue_time_seconds": usage.queue_s,
            "request_inference_time_seconds": usage.prefill_s + usage.decode_s,
            "request_prefill_time_seconds": usage.prefill_s,
            "request_decode_time_seconds": usage.decode_s,
            "request_prompt_tokens": usage.prompt_tokens,
            "request_generation_tokens": usage.completion_tokens,
            "request_max_num_generation_tokens": usage.completion_tokens,
            "request_params_n": n,
        }
        if usage.completion_tokens > 1:
            values["request_time_per_output_token_seconds"] = usage.decode_s / (usage.completion_tokens - 1)
        if max_tokens is not None:
            values["request_params_max_tokens"] = max_tokens
        for name, value in values.items():
            self._vllm[name].observe(value)

    def cut_short(self, reason: str, num_completions: int) -> None:
        """Completions that were submitted ended early: "abort" (their client is gone) or "error"."""
        self._finished[reason].inc(num_completions)

    def render(self, gauges: dict[str, tuple[str, float]]) -> bytes:
        """The text exposition. ``gauges``: the server's own, name to (help, value)."""
        self._engine_metrics.gauges = gauges
        clients, adapters = self._engine_metrics.update()
        for name in clients:
            self._forget(self._client_ttft, name)
            for reason in self._rejections:
                self._forget(self._client_rejections, name, reason)
        for name in adapters:
            self._forget(self._adapter_ttft, name)
        return generate_latest(self._registry)

    @staticmethod
    def _forget(metric: Counter | Histogram, *labels: str) -> None:
        if labels[0] != OTHER:
            metric.remove(*labels)


class _Snapshot(Collector):
    """Lets the registry ask for the engine's series."""

    def __init__(self, engine_metrics: EngineMetrics) -> None:
        self._engine_metrics = engine_metrics

    def collect(self) -> Iterator[Metric]:
        return self._engine_metrics.collect()

    def describe(self) -> list[Metric]:
        return []
