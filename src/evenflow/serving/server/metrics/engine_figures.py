"""Figures of the whole engine: vLLM's names for gateways and dashboards that know them, and our own."""

from __future__ import annotations

from collections.abc import Iterable

from evenflow.serving.client.messages import ITERATION_TOKENS
from evenflow.serving.server.metrics.figure import Figure, Histogram, Kind, Scrape, Series, by_label, counter, gauge


def _waiting_by_reason(scrape: Scrape) -> Iterable[tuple[str, float]]:
    stats = scrape.stats
    return {"capacity": 0, "deferred": 0, **(stats.num_waiting_by_reason or {"capacity": stats.num_waiting})}.items()


def _adapters_of_requests(scrape: Scrape) -> Series:
    running = sorted(set(scrape.stats.running_adapters))
    waiting = sorted(set(scrape.stats.waiting_adapters) - set(running))
    yield (str(max(scrape.stats.num_adapters, 1)), ",".join(running), ",".join(waiting)), scrape.unix_time_s


def _arena(scrape: Scrape) -> Series:
    stats = scrape.stats
    yield (str(stats.page_tokens), str(stats.num_pages), str(stats.caches_prefixes)), 1


def _step_tokens(scrape: Scrape) -> Histogram:
    counts = scrape.stats.num_steps_by_tokens or [0] * (len(ITERATION_TOKENS) + 1)
    return Histogram(ends=ITERATION_TOKENS, counts=tuple(counts), total=scrape.stats.num_step_tokens)


def _what_runs(scrape: Scrape) -> Series:
    info = scrape.info
    if info is not None:
        yield (scrape.version, info.policy, info.dtype, str(info.tensor_parallel)), 1


def _pages(scrape: Scrape) -> Iterable[tuple[str, float]]:
    stats = scrape.stats
    yield "free", stats.num_free_pages
    yield "kv", stats.num_kv_pages
    yield "adapter", stats.num_adapter_pages
    yield "prefix", stats.num_idle_cache_pages


def _adapters_by_state(scrape: Scrape) -> Iterable[tuple[str, float]]:
    stats = scrape.stats
    yield "registered", stats.num_adapters
    yield "resident", stats.num_resident_adapters
    yield "host", stats.num_host_adapters
    yield "disk", max(0, stats.num_adapters - stats.num_resident_adapters - stats.num_host_adapters)
    yield "pinned", stats.num_pinned_adapters


def _adapter_bytes(scrape: Scrape) -> Iterable[tuple[str, float]]:
    stats = scrape.stats
    yield "disk", stats.adapter_bytes
    yield "host", stats.host_adapter_bytes
    yield "arena", stats.num_adapter_pages * (scrape.info.page_bytes if scrape.info is not None else 0)


VLLM_FIGURES = (
    gauge("vllm:num_requests_running", "Requests in the batch.", lambda s: s.stats.num_running),
    gauge("vllm:num_requests_waiting", "Requests that wait.", lambda s: s.stats.num_waiting),
    by_label("vllm:num_requests_waiting_by_reason", Kind.GAUGE, "Requests that wait, by reason.", "reason", _waiting_by_reason),
    gauge(
        "vllm:kv_cache_usage_perc",
        "Part of the arena that holds KV cache, 0 to 1.",
        lambda s: s.stats.num_kv_pages / s.stats.num_pages if s.stats.num_pages else 0.0,
    ),
    counter("vllm:prompt_tokens", "Prompt tokens computed.", lambda s: s.stats.prompt_tokens),
    counter("vllm:generation_tokens", "Output tokens.", lambda s: s.stats.completion_tokens),
    counter("vllm:num_preemptions", "Preemptions.", lambda s: s.stats.num_preemptions),
    counter(
        "vllm:prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache.",
        lambda s: s.stats.prompt_tokens + s.stats.cached_tokens if s.stats.caches_prefixes else 0,
    ),
    counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda s: s.stats.cached_tokens),
    counter(
        "vllm:prompt_tokens_cached",
        "Prompt tokens that were not computed, because they were in the prefix cache.",
        lambda s: s.stats.cached_tokens,
    ),
    Figure(
        name="vllm:iteration_tokens_total",
        kind=Kind.HISTOGRAM,
        help="Tokens computed in a step.",
        histogram_source=_step_tokens,
    ),
    Figure(
        name="vllm:lora_requests_info",
        kind=Kind.GAUGE,
        help="Adapters with running requests, and with waiting requests only; the value is the time of the scrape.",
        labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        source=_adapters_of_requests,
    ),
    Figure(
        name="vllm:cache_config_info",
        kind=Kind.GAUGE,
        help="The arena: tokens per page, number of pages, whether prefixes are cached.",
        labels=("block_size", "num_gpu_blocks", "enable_prefix_caching"),
        source=_arena,
    ),
)

ENGINE_FIGURES = (
    Figure(
        name="evenflow_info",
        kind=Kind.GAUGE,
        help="What runs; always 1.",
        labels=("version", "policy", "dtype", "tensor_parallel"),
        source=_what_runs,
    ),
    by_label("evenflow_pages", Kind.GAUGE, "Pages of the arena, by owner.", "owner", _pages),
    by_label(
        "evenflow_adapters",
        Kind.GAUGE,
        "Adapters: all that are registered; of these, by where they are; and the pinned ones.",
        "state",
        _adapters_by_state,
    ),
    by_label("evenflow_adapter_bytes", Kind.GAUGE, "Bytes of adapters' rows, by where they are.", "tier", _adapter_bytes),
    counter("evenflow_adapter_evictions", "Adapters evicted from the arena.", lambda s: s.stats.num_adapter_evictions),
    counter(
        "evenflow_adapter_prefetches", "Adapters loaded for requests that waited.", lambda s: s.stats.num_adapter_prefetches
    ),
    counter(
        "evenflow_adapter_prefetches_wasted",
        "Prefetched adapters that were evicted before anybody used them.",
        lambda s: s.stats.num_wasted_prefetches,
    ),
    counter("evenflow_adapter_loaded_bytes", "Bytes of rows copied into the arena.", lambda s: s.stats.loaded_adapter_bytes),
    counter(
        "evenflow_shared_counter_failures",
        "Exchanges with shared counters that failed.",
        lambda s: s.stats.num_failed_exchanges,
    ),
    counter(
        "evenflow_adapter_load_failures",
        "Loads that failed because rows were lost or damaged.",
        lambda s: s.stats.num_failed_adapter_loads,
    ),
    counter(
        "evenflow_recomputed_tokens",
        "Tokens computed again after a preemption, charged to nobody.",
        lambda s: s.stats.recomputed_tokens,
    ),
    counter("evenflow_steps", "Engine steps.", lambda s: s.stats.num_steps),
    counter(
        "evenflow_requests_shed",
        "Requests given up, because their first token would have come later than it was wanted.",
        lambda s: s.stats.num_shed,
    ),
    counter("evenflow_scheduling_seconds", "Time spent planning and committing.", lambda s: s.stats.scheduling_s),
    counter("evenflow_executing_seconds", "Time spent in the executor.", lambda s: s.stats.executing_s),
    gauge("evenflow_step_seconds", "Median time of the last steps.", lambda s: s.stats.step_s),
    gauge(
        "evenflow_output_tokens_per_second",
        "Output tokens per second, over the last seconds of work.",
        lambda s: s.stats.tokens_per_s,
    ),
    gauge(
        "evenflow_prompt_tokens_per_second",
        "Prompt tokens per second, over the last seconds of work.",
        lambda s: s.stats.prompt_tokens_per_s,
    ),
    by_label(
        "evenflow_wire_bytes",
        Kind.COUNTER,
        "Bytes that rank 0 has sent to other ranks.",
        "site",
        lambda s: [(site, wire.sent_bytes) for site, wire in s.stats.wire.items()],
    ),
    by_label(
        "evenflow_wire_exchanges",
        Kind.COUNTER,
        "Exchanges between ranks.",
        "site",
        lambda s: [(site, wire.exchanges) for site, wire in s.stats.wire.items()],
    ),
)
