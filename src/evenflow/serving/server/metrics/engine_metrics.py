"""The engine's snapshot as Prometheus series: vLLM's view of it, and ours per client and per adapter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from evenflow.serving.client.messages import ITERATION_TOKENS, EngineStats
from evenflow.serving.server.interfaces import Engine
from evenflow.serving.server.metrics.topk import OTHER, TopK


class EngineMetrics:
    """Reads ``engine.stats``; keeps only what bounded cardinality needs."""

    def __init__(
        self, engine: Engine, model_name: str, engine_label: str, version: str, top_k: int, unix_time: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._labels = {"model_name": model_name, "engine": engine_label}
        self._version = version
        self._unix_time = unix_time
        self.clients = TopK(top_k, 4)
        """Counters: service, prompt tokens, completion tokens, cached tokens."""
        self.adapters = TopK(top_k, 4)
        """Counters: completion tokens, prompt tokens, loads, cached tokens."""
        self.gauges: dict[str, tuple[str, float]] = {}
        """The server's own, name to (help, value)."""

    def update(self) -> tuple[list[str], list[str]]:
        """Take the snapshot's counters. Returns clients and adapters that no longer have series of their own."""
        stats = self._engine.stats
        hidden_clients = self.clients.update(
            {name: (c.service, c.prompt_tokens, c.completion_tokens, c.cached_tokens) for name, c in stats.clients.items()}
        )
        by_name: dict[str, list[float]] = {}
        for adapter in stats.adapters.values():  # one name may stand for several digests, after a reload
            sums = by_name.setdefault(adapter.name, [0, 0, 0, 0])
            counts = (adapter.completion_tokens, adapter.prompt_tokens, adapter.num_loads, adapter.cached_tokens)
            for i, value in enumerate(counts):
                sums[i] += value
        return hidden_clients, self.adapters.update({name: tuple(sums) for name, sums in by_name.items()})

    def collect(self) -> Iterator[Metric]:
        """All series of the latest snapshot."""
        stats = self._engine.stats
        yield from self._vllm(stats)
        yield from self._own(stats)
        yield from self._by_client(stats)
        yield from self._by_adapter(stats)
        yield from self._by_site(stats)

    def _vllm(self, stats: EngineStats) -> Iterator[Metric]:
        gauge, counter = self._gauge, self._counter
        yield gauge("vllm:num_requests_running", "Requests in the batch.", stats.num_running)
        yield gauge("vllm:num_requests_waiting", "Requests that wait.", stats.num_waiting)
        reasons = {"capacity": 0, "deferred": 0, **(stats.num_waiting_by_reason or {"capacity": stats.num_waiting})}
        by_reason = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason", "Requests that wait, by reason.", labels=[*self._labels, "reason"]
        )
        for reason, count in reasons.items():
            by_reason.add_metric([*self._labels.values(), reason], count)
        yield by_reason
        usage = stats.num_kv_pages / stats.num_pages if stats.num_pages else 0.0
        yield gauge("vllm:kv_cache_usage_perc", "Part of the arena that holds KV cache, 0 to 1.", usage)
        yield counter("vllm:prompt_tokens", "Prompt tokens computed.", stats.prompt_tokens)
        yield counter("vllm:generation_tokens", "Output tokens.", stats.completion_tokens)
        yield counter("vllm:num_preemptions", "Preemptions.", stats.num_preemptions)
        queried = stats.prompt_tokens + stats.cached_tokens if stats.caches_prefixes else 0
        yield counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", queried)
        yield counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.cached_tokens)
        yield counter("vllm:prompt_tokens_cached", "Prompt tokens not computed, because cached.", stats.cached_tokens)
        counts = stats.num_steps_by_tokens or [0] * (len(ITERATION_TOKENS) + 1)
        steps = HistogramMetricFamily("vllm:iteration_tokens_total", "Tokens computed in a step.", labels=list(self._labels))
        ends = [*(str(float(end)) for end in ITERATION_TOKENS), "+Inf"]
        buckets = list(zip(ends, itertools.accumulate(counts), strict=True))
        steps.add_metric(list(self._labels.values()), buckets, stats.num_step_tokens)
        yield steps
        running = sorted(set(stats.running_adapters))
        waiting = sorted(set(stats.waiting_adapters) - set(running))
        yield gauge(
            "vllm:lora_requests_info",
            "Adapters with running and with only waiting requests; the value is the time of this scrape.",
            self._unix_time(),
            max_lora=str(max(stats.num_adapters, 1)),
            running_lora_adapters=",".join(running),
            waiting_lora_adapters=",".join(waiting),
        )
        yield gauge(
            "vllm:cache_config_info",
            "The arena.",
            1,
            block_size=str(stats.page_tokens),
            num_gpu_blocks=str(stats.num_pages),
            enable_prefix_caching=str(stats.caches_prefixes),
        )

    def _own(self, stats: EngineStats) -> Iterator[Metric]:
        if self._engine.is_ready:
            info = self._engine.info
            ranks = str(info.tensor_parallel)
            what = {"version": self._version, "policy": info.policy, "dtype": info.dtype, "tensor_parallel": ranks}
            yield self._plain("evenflow_info", "What runs.", 1, **what, **self._labels)
        pages = GaugeMetricFamily("evenflow_pages", "Pages of the arena, by owner.", labels=["owner"])
        for owner, count in (
            ("free", stats.num_free_pages),
            ("kv", stats.num_kv_pages),
            ("adapter", stats.num_adapter_pages),
            ("prefix", stats.num_idle_cache_pages),
        ):
            pages.add_metric([owner], count)
        yield pages
        adapters = GaugeMetricFamily("evenflow_adapters", "Adapters, by where they are.", labels=["state"])
        adapters.add_metric(["registered"], stats.num_adapters)
        adapters.add_metric(["resident"], stats.num_resident_adapters)
        adapters.add_metric(["host"], stats.num_host_adapters)
        adapters.add_metric(["disk"], max(0, stats.num_adapters - stats.num_resident_adapters - stats.num_host_adapters))
        adapters.add_metric(["pinned"], stats.num_pinned_adapters)
        yield adapters
        sizes = GaugeMetricFamily("evenflow_adapter_bytes", "Bytes of adapters' rows, by where they are.", labels=["tier"])
        page_bytes = self._engine.info.page_bytes if self._engine.is_ready else 0
        for tier, size in (
            ("disk", stats.adapter_bytes),
            ("host", stats.host_adapter_bytes),
            ("arena", stats.num_adapter_pages * page_bytes),
        ):
            sizes.add_metric([tier], size)
        yield sizes
        for name, text, value in (
            ("evenflow_adapter_evictions", "Adapters evicted from the arena.", stats.num_adapter_evictions),
            ("evenflow_adapter_prefetches", "Adapters loaded for requests that waited.", stats.num_adapter_prefetches),
            ("evenflow_adapter_prefetches_wasted", "Of those, evicted before anybody used them.", stats.num_wasted_prefetches),
            ("evenflow_adapter_loaded_bytes", "Bytes of rows copied into the arena.", stats.loaded_adapter_bytes),
            ("evenflow_shared_counter_failures", "Exchanges with shared counters that failed.", stats.num_failed_exchanges),
            ("evenflow_adapter_load_failures", "Loads that failed: rows lost or damaged.", stats.num_failed_adapter_loads),
            (
                "evenflow_recomputed_tokens",
                "Tokens computed again after a preemption, charged to nobody.",
                stats.recomputed_tokens,
            ),
            ("evenflow_steps", "Engine steps.", stats.num_steps),
            (
                "evenflow_requests_shed",
                "Requests given up, because their first token would have come later than it was wanted.",
                stats.num_shed,
            ),
            ("evenflow_scheduling_seconds", "Time spent planning and committing.", stats.scheduling_s),
            ("evenflow_executing_seconds", "Time spent in the executor.", stats.executing_s),
        ):
            yield CounterMetricFamily(name, text, value=value)
        own = {
            "evenflow_step_seconds": ("Median of the last steps.", stats.step_s),
            "evenflow_output_tokens_per_second": ("Over the last seconds of work.", stats.tokens_per_s),
            "evenflow_prompt_tokens_per_second": ("Over the last seconds of work.", stats.prompt_tokens_per_s),
            **self.gauges,
        }
        for name, (text, value) in own.items():
            yield self._plain(name, text, value)

    def _by_client(self, stats: EngineStats) -> Iterator[Metric]:
        for i, (name, text) in enumerate(
            (
                ("evenflow_client_service", "Service charged, in the policy's unit."),
                ("evenflow_client_prompt_tokens", "Prompt tokens."),
                ("evenflow_client_completion_tokens", "Output tokens."),
                ("evenflow_client_cached_tokens", "Prompt tokens found in the prefix cache."),
            )
        ):
            yield _totals(name, text, "client", self.clients, i)
        label = self.clients.label
        yield _summed("evenflow_client_requests_waiting", "Requests that wait.", "client", stats.clients, label, "num_waiting")
        yield _summed(
            "evenflow_client_requests_running", "Requests in the batch.", "client", stats.clients, label, "num_running"
        )
        counters = GaugeMetricFamily("evenflow_client_virtual_counter", "The policy's counter of a client.", labels=["client"])
        weights = GaugeMetricFamily(
            "evenflow_client_weight", "Own weight times the tier's; under hierarchy tiers share first.", labels=["client"]
        )
        for name, client in stats.clients.items():
            if label(name) != OTHER:
                weights.add_metric([name], client.weight)
                if client.virtual_counter is not None:
                    counters.add_metric([name], client.virtual_counter)
        yield counters
        yield weights

    def _by_adapter(self, stats: EngineStats) -> Iterator[Metric]:
        for i, (name, text) in enumerate(
            (
                ("evenflow_adapter_completion_tokens", "Output tokens."),
                ("evenflow_adapter_prompt_tokens", "Prompt tokens."),
                ("evenflow_adapter_loads", "Copies into the arena."),
                ("evenflow_adapter_cached_tokens", "Prompt tokens found in the prefix cache."),
            )
        ):
            yield _totals(name, text, "adapter", self.adapters, i)

        def label(digest: str) -> str:
            return self.adapters.label(stats.adapters[digest].name)

        for name, text, attribute in (
            ("evenflow_adapter_requests_waiting", "Requests that wait.", "num_waiting"),
            ("evenflow_adapter_requests_running", "Requests in the batch.", "num_running"),
            ("evenflow_adapter_resident", "1: in the arena.", "is_resident"),
        ):
            yield _summed(name, text, "adapter", stats.adapters, label, attribute)

    @staticmethod
    def _by_site(stats: EngineStats) -> Iterator[Metric]:
        if not stats.wire:
            return
        sent = CounterMetricFamily("evenflow_wire_bytes", "Bytes rank 0 has sent to other ranks.", labels=["site"])
        exchanges = CounterMetricFamily("evenflow_wire_exchanges", "Exchanges between ranks.", labels=["site"])
        for site, wire in stats.wire.items():
            sent.add_metric([site], wire.sent_bytes)
            exchanges.add_metric([site], wire.exchanges)
        yield sent
        yield exchanges

    def _gauge(self, name: str, text: str, value: float, **labels: str) -> Metric:
        return self._plain(name, text, value, **self._labels, **labels)

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    @staticmethod
    def _plain(name: str, text: str, value: float, **labels: str) -> Metric:
        family = GaugeMetricFamily(name, text, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        return family


def _totals(name: str, text: str, kind: str, top: TopK, i: int) -> Metric:
    family = CounterMetricFamily(name, text, labels=[kind])
    for label, totals in top.totals.items():
        family.add_metric([label], totals[i])
    return family


def _summed(name: str, text: str, kind: str, entries: dict[str, Any], label: Callable[[str], str], attribute: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[kind])
    sums: dict[str, float] = {}
    for key, entry in entries.items():
        sums[label(key)] = sums.get(label(key), 0.0) + getattr(entry, attribute)
    for key, value in sums.items():
        family.add_metric([key], value)
    return family
