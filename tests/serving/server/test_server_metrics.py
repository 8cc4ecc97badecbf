"""/metrics: parses, has the names that gateways read, counts right, and keeps its cardinality."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, busy_stats, in_process, make_adapter

from evenflow.base.errors import ServerFull
from evenflow.serving.client.messages import AdapterStats, ClientStats, EngineStats, RequestOutput, WireStats
from evenflow.serving.engine.meters import Meters
from evenflow.serving.server.app import create_app
from evenflow.serving.server.metrics.metrics_page import Metrics
from evenflow.serving.server.metrics.reference import reference_rows
from evenflow.serving.server.metrics.topk import OTHER, TopK
from evenflow.serving.server.server_config import ServerConfig

VLLM_NAMES = [
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_waiting_by_reason",
    "kv_cache_usage_perc",
    "lora_requests_info",
    "cache_config_info",
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "num_preemptions_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "prompt_tokens_cached_total",
    "admission_rejections_total",
    "iteration_tokens_total_bucket",
    "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_bucket",
    "request_time_per_output_token_seconds_bucket",
    "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_bucket",
    "request_inference_time_seconds_bucket",
    "request_prefill_time_seconds_bucket",
    "request_decode_time_seconds_bucket",
    "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket",
    "request_max_num_generation_tokens_bucket",
    "request_params_n_bucket",
    "request_params_max_tokens_bucket",
]


def series_of(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name].append((sample.labels, sample.value))
    return found


def scrape(engine: FakeEngine, metrics: Metrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    return series_of(metrics.render().decode())


def test_the_names_and_labels_that_gateways_read():
    async def main() -> None:
        engine = FakeEngine()
        engine.stats_now = busy_stats()
        engine.stats_now.wire = {"lora.qkv": WireStats(3, 1200.0, 1200.0)}
        series = scrape(engine, Metrics(engine, "base", "1.2.3", 10, lambda: 12.5))
        for name in VLLM_NAMES:
            assert f"vllm:{name}" in series, name
            assert all(labels["model_name"] == "base" and labels["engine"] == "0" for labels, _ in series[f"vllm:{name}"])

        def value(name: str, **labels: str) -> float:
            [found] = [v for have, v in series[name] if all(have[key] == text for key, text in labels.items())]
            return found

        assert value("vllm:num_requests_running") == 2
        assert value("vllm:num_requests_waiting") == 3
        assert value("vllm:num_requests_waiting_by_reason", reason="capacity") == 3
        assert value("vllm:kv_cache_usage_perc") == 0.3
        assert value("vllm:prompt_tokens_total") == 1000
        assert value("vllm:generation_tokens_total") == 500
        assert [float(labels["le"]) for labels, _ in series["vllm:iteration_tokens_total_bucket"]] == [
            *(1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
            float("inf"),
        ]
        assert value("vllm:num_preemptions_total") == 4
        [(lora, time_s)] = series["vllm:lora_requests_info"]
        assert (lora["running_lora_adapters"], lora["waiting_lora_adapters"], time_s) == ("a,b", "c", 12.5)
        assert value("vllm:cache_config_info", block_size="16", num_gpu_blocks="100") == 1
        assert value("evenflow_client_service_total", client="alice") == 1200
        assert value("evenflow_client_prompt_tokens_total", client="bob") == 400
        assert value("evenflow_client_completion_tokens_total", client="bob") == 200
        assert value("evenflow_client_virtual_counter", client="alice") == 17
        assert [labels for labels, _ in series["evenflow_client_virtual_counter"]] == [{"client": "alice"}]
        assert value("evenflow_client_weight", client="alice") == 2
        assert value("evenflow_client_requests_waiting", client="bob") == 2
        assert value("evenflow_adapter_completion_tokens_total", adapter="a") == 22, "both digests of the name"
        assert value("evenflow_adapter_loads_total", adapter="a") == 4
        assert value("evenflow_adapter_resident", adapter="a") == 1
        assert value("evenflow_adapter_requests_waiting", adapter="c") == 1
        assert value("evenflow_pages", owner="adapter") == 20
        assert value("evenflow_adapters", state="resident") == 2
        assert value("evenflow_adapter_evictions_total") == 6
        assert [value("evenflow_adapters", state=s) for s in ("registered", "host", "disk", "pinned")] == [5, 1, 2, 1]
        assert [value("evenflow_adapter_bytes", tier=t) for t in ("disk", "host", "arena")] == [5000, 3000, 20 * 4096]
        assert value("evenflow_adapter_prefetches_total") == 8
        assert value("evenflow_adapter_prefetches_wasted_total") == 3
        assert value("evenflow_adapter_loaded_bytes_total") == 9000
        assert value("evenflow_adapter_load_failures_total") == 2
        assert value("evenflow_recomputed_tokens_total") == 7
        assert value("evenflow_info", version="1.2.3", policy="vtc", tensor_parallel="1") == 1
        assert value("evenflow_wire_bytes_total", site="lora.qkv") == 1200
        assert value("evenflow_wire_exchanges_total", site="lora.qkv") == 3

    asyncio.run(main())


def test_requests_show_up(tmp_path):
    async def main() -> None:
        engine = FakeEngine()
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(max_queue=1), {"a": make_adapter(tmp_path, "a")})
        async with in_process(app) as client:
            body = {"model": "a", "prompt": "hi", "user": "alice", "max_tokens": 4}
            assert (await client.post("/v1/completions", json=body)).status_code == 200
            assert (await client.post("/v1/completions", json={**body, "n": 2})).status_code == 503
            response = await client.get("/metrics")
            assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
            series = series_of(response.text)
        assert ({"model_name": "base", "engine": "0", "finished_reason": "length"}, 1) in series["vllm:request_success_total"]
        assert series["vllm:request_generation_tokens_sum"][0][1] == 4
        assert series["vllm:inter_token_latency_seconds_count"][0][1] == 3
        assert series["vllm:time_to_first_token_seconds_count"][0][1] == 1
        assert series["vllm:request_params_max_tokens_sum"][0][1] == 4
        assert series["evenflow_client_time_to_first_token_seconds_count"] == [({"client": "alice"}, 1)]
        assert series["evenflow_adapter_time_to_first_token_seconds_count"] == [({"adapter": "a"}, 1)]
        assert ({"model_name": "base", "engine": "0", "reason": "queue_full"}, 1) in series["vllm:admission_rejections_total"]
        assert series["evenflow_client_rejections_total"] == [({"client": "alice", "reason": "queue_full"}, 1)]
        assert ({"model_name": "base", "engine": "0", "reason": "slo"}, 0) in series["vllm:admission_rejections_total"]
        assert series["evenflow_ready"] == [({}, 1)]
        assert series["evenflow_completions_waiting"] == [({}, 0)]

    asyncio.run(main())


def test_requests_given_up_are_counted():
    async def main() -> None:
        engine = FakeEngine()
        engine.stats_now = EngineStats(policy="vtc", num_shed=7)
        engine.fail_with = RequestOutput("", error_type="SLOUnreachable", error="late", retry_after_s=1.0, predicted_ttft_s=9.0)
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig())
        async with in_process(app) as client:
            body = {"model": "base", "prompt": "hi", "user": "alice", "slo_ttft": 1.0}
            assert (await client.post("/v1/completions", json=body)).status_code == 503
            series = series_of((await client.get("/metrics")).text)
        assert ({"model_name": "base", "engine": "0", "reason": "slo"}, 1) in series["vllm:admission_rejections_total"]
        assert series["evenflow_client_rejections_total"] == [({"client": "alice", "reason": "slo"}, 1)]
        assert series["evenflow_requests_shed_total"] == [({}, 7)]

    asyncio.run(main())


def test_a_thousand_clients_and_adapters_are_k_series_and_other():
    async def main() -> None:
        engine = FakeEngine()
        metrics = Metrics(engine, "base", "1", 5)
        for step in range(1, 6):
            for i in range(100):
                metrics.first_token(f"c{i}", f"a{i}", 0.1)
            engine.stats_now = EngineStats(
                clients={f'c{i}"\n\\': ClientStats(1, 1, i, i, float(i * step)) for i in range(1000)},
                adapters={f"d{i}": AdapterStats(f"a{i}", 1, 1, i, i * step) for i in range(1000)},
            )
            series = scrape(engine, metrics)
            for name, samples in series.items():
                if name.startswith(("evenflow_client", "evenflow_adapter_")):
                    kind = "client" if name.startswith("evenflow_client") else "adapter"
                    shown = {labels[kind] for labels, _ in samples if kind in labels}
                    assert len(shown) <= 6, name
        total = sum(value for _, value in series["evenflow_client_service_total"])
        assert 0 < total <= sum(range(1000)) * 5
        waiting = {labels["client"]: value for labels, value in series["evenflow_client_requests_waiting"]}
        assert sum(waiting.values()) == 1000
        assert waiting[OTHER] == 995

    asyncio.run(main())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 50), max_size=8), max_size=30), st.integers(0, 4))
def test_labelled_counters_never_fall_and_nothing_is_lost_without_eviction(rounds, k):
    """``rounds``: what each name gains between two snapshots."""
    top, true, shown_before = TopK(k, 1), defaultdict(int), {}
    gained = lost = 0.0
    for gains in rounds:
        for name, gain in gains.items():
            true[name] += gain
            gained += gain
        before = {label: totals[0] for label, totals in top.totals.items()}
        hidden = top.update({name: (float(value),) for name, value in true.items()})
        lost += sum(before.get(name, 0) for name in hidden)
        shown_before = {label: totals[0] for label, totals in top.totals.items()}
        for label, value in before.items():
            if label not in hidden:
                assert shown_before[label] >= value, "a counter fell"
        assert len(set(shown_before) - {OTHER}) <= k
        assert sum(shown_before.values()) + lost == gained


def test_a_busy_newcomer_takes_the_place_of_an_idle_name():
    top = TopK(1, 1)
    top.update({"old": (100.0,)})
    assert set(top.totals) == {"old"}
    for step in range(1, 40):
        hidden = top.update({"old": (100.0,), "new": (30.0 * step,)})
        if hidden:
            break
    assert hidden == ["old"]
    assert top.label("new") == "new"
    assert top.label("old") == OTHER


def test_a_client_that_the_engine_forgot_starts_again_from_zero():
    top = TopK(2, 1)
    top.update({"a": (100.0,)})
    top.update({})
    top.update({"a": (7.0,)})
    assert top.totals["a"] == [107.0]


def test_steps_are_counted_by_their_tokens():
    meters = Meters()
    for num_tokens in (1, 2, 8, 9, 16384, 16385):
        meters.record(scheduling_s=0.0, executing_s=0.1, num_tokens=num_tokens)
    engine = FakeEngine()
    engine.stats_now = EngineStats(num_steps_by_tokens=meters.num_steps_by_tokens, num_step_tokens=meters.num_step_tokens)
    series = scrape(engine, Metrics(engine, "base", "1", 10))
    below = {float(labels["le"]): value for labels, value in series["vllm:iteration_tokens_total_bucket"]}
    assert (below[1], below[8], below[16], below[8192], below[16384], below[float("inf")]) == (1, 3, 4, 4, 5, 6)
    [(_, total)] = series["vllm:iteration_tokens_total_sum"]
    assert total == 1 + 2 + 8 + 9 + 16384 + 16385


def test_the_reference_lists_what_the_page_shows_and_nothing_else():
    async def main() -> None:
        engine = FakeEngine()
        engine.stats_now = busy_stats()
        engine.stats_now.wire = {"lora.qkv": WireStats(3, 1200.0, 1200.0)}
        metrics = Metrics(engine, "base", "1.2.3", 10, lambda: 12.5)
        metrics.first_token("alice", "a", 0.1)
        metrics.rejected("alice", ServerFull("full"))
        rows = {row.name: row for row in reference_rows()}
        assert len(rows) == len(reference_rows()), "a name is declared twice"
        shown = {}
        for family in text_string_to_metric_families(metrics.render().decode()):
            if family.name.endswith("_created"):
                continue
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = set().union(*(sample.labels for sample in family.samples)) - {"le"} if family.samples else None
            shown[name] = (family.type, labels, family.documentation)
        assert shown.keys() == rows.keys()
        for name, (kind, labels, text) in shown.items():
            row = rows[name]
            assert (row.kind, row.help) == (kind, text), name
            assert labels is None or labels == set(row.labels), name
            assert text.endswith((".", ";", "1.")) or not name.startswith("evenflow"), f"{name} is not told in a sentence"

    asyncio.run(main())
