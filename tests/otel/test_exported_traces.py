"""Traces as a collector gets them: one for each request to the model, in the caller's trace, and never at its expense."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

for folder in ("tests/otel", "tests/serving/server"):
    sys.path.insert(0, str(Path(__file__).parents[2] / folder))

from collector import Collector, Span  # noqa: E402
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer, make_adapter  # noqa: E402

from evenflow.access.keys import hash_key  # noqa: E402
from evenflow.base.errors import ConfigError  # noqa: E402
from evenflow.serving.client.messages import RequestOutput  # noqa: E402
from evenflow.serving.server.app import create_app  # noqa: E402
from evenflow.serving.server.observing import trace_sender  # noqa: E402
from evenflow.serving.server.server_config import ServerConfig  # noqa: E402

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CHAT: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "a secret question"}]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_sender, "DELAY_S", 0.05)
    monkeypatch.setattr(trace_sender.TraceSender.__init__, "__kwdefaults__", {"service": "evenflow", "delay_s": 0.05})
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def collector():
    made = Collector()
    yield made
    made.close()


class Served:
    """A server that sends its traces to ``collector``."""

    def __init__(self, collector: Collector, tmp_path: Path, **options: Any) -> None:
        self.engine = FakeEngine(max_model_len=4096)
        config = ServerConfig(served_model_names=("base",), otlp_endpoint=collector.url, **options)
        app = create_app(self.engine, FakeTokenizer(), FakeTemplate(), config, {"a": make_adapter(tmp_path, "a", "a")})
        self.live = LiveServer(app)

    def __enter__(self) -> LiveServer:
        return self.live.__enter__()

    def __exit__(self, *error: object) -> None:
        self.live.__exit__(*error)


@pytest.fixture
def served(collector, tmp_path):
    return Served(collector, tmp_path)


def tree(spans: list[Span]) -> tuple[Span, dict[str, Span]]:
    """The root, and the others by name; every one of them hangs below it."""
    root = next(span for span in spans if span.name == "llm_request")
    ids = {span.span_id for span in spans}
    for span in spans:
        assert span.trace_id == root.trace_id
        assert span is root or span.parent_id in ids
        assert span.start_s >= root.start_s - 1e-6
        assert span.end_s >= span.start_s
    return root, {span.name: span for span in spans if span is not root}


def metric(live: LiveServer, name: str) -> float:
    return float(next(line for line in live.http.get("/metrics").text.splitlines() if line.startswith(name + " ")).split()[1])


def test_a_request_is_one_trace_with_the_parts_of_its_life(served, collector):
    with served as live:
        began_s = time.time()
        body = {**CHAT, "model": "a", "max_tokens": 5, "temperature": 0.5, "seed": 7, "user": "alice"}
        headers = {"traceparent": PARENT, "tracestate": "vendor=1", "x-request-id": "mine-1"}
        answer = live.http.post("/v1/chat/completions", json=body, headers=headers)
        root, others = tree(collector.wait(lambda spans: len(spans) >= 5))
    assert collector.paths[0] == "/v1/traces"
    assert set(others) == {"queue", "tokenize", "prefill", "decode"}
    assert (root.trace_id, root.parent_id, root.state) == (PARENT[3:35], PARENT[36:52], "vendor=1")
    assert served.engine.submitted[0].traceparent == f"00-{root.trace_id}-{root.span_id}-01"
    assert root.kind == 2
    assert {span.kind for span in others.values()} == {1}
    assert (others["tokenize"].parent_id, others["queue"].parent_id) == (others["queue"].span_id, root.span_id)
    # What the engine measured, in its order, from the request's arrival on.
    assert began_s - 0.01 <= root.start_s <= others["queue"].start_s <= time.time()
    assert [others[name].duration_s for name in ("queue", "prefill", "decode")] == pytest.approx([0.25, 0.5, 1.0], abs=1e-3)
    assert others["queue"].end_s == pytest.approx(others["prefill"].start_s, abs=1e-6)
    assert others["prefill"].end_s == pytest.approx(others["decode"].start_s, abs=1e-6)
    said = root.attributes
    usage = answer.json()["usage"]
    for name, value in {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "a",
        "gen_ai.response.model": "base",
        "gen_ai.request.id": answer.json()["id"],
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.n": 1,
        "gen_ai.usage.prompt_tokens": usage["prompt_tokens"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.completion_tokens": 5,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.latency.time_in_queue": 0.25,
        "gen_ai.latency.time_in_model_prefill": 0.5,
        "gen_ai.latency.time_in_model_decode": 1.0,
        "gen_ai.response.finish_reasons": ["length"],
        "http.response.status_code": 200,
        "evenflow.client": "alice",
        "evenflow.adapter": "a",
        "evenflow.request_id": "mine-1",
    }.items():
        assert said[name] == value, name
    assert 0 < said["gen_ai.latency.time_to_first_token"] <= said["gen_ai.latency.e2e"] < 10
    assert root.resource["service.name"] == "evenflow"
    assert not any("secret" in str(value) for span in collector.spans for value in span.attributes.values())
    assert not root.is_error


def test_a_stream_is_told_when_it_has_ended(served, collector):
    with served as live:
        served.engine.step_s = 0.05
        with live.http.stream("POST", "/v1/chat/completions", json={**CHAT, "max_tokens": 6, "stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("data: {")]
        root, others = tree(collector.wait(lambda spans: len(spans) >= 5))
    assert len(lines) >= 6
    assert root.attributes["evenflow.is_streamed"] is True
    assert root.duration_s >= 0.25
    assert others["decode"].attributes["gen_ai.usage.output_tokens"] == 6


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_caller_that_goes_leaves_a_trace_of_what_there_was(served, collector, is_streamed):
    with served as live:
        served.engine.step_s = 0.05
        body = {**CHAT, "max_tokens": 2000, "stream": is_streamed, "ignore_eos": True}
        served.engine.answer = lambda submit: "x" * 2000
        if is_streamed:
            with live.http.stream("POST", "/v1/chat/completions", json=body) as answer:
                for number, _ in enumerate(answer.iter_lines()):
                    if number > 6:
                        break
        else:
            with pytest.raises(httpx.ReadTimeout):
                live.http.post("/v1/chat/completions", json=body, timeout=0.4)
        root, others = tree(collector.wait(lambda spans: len(spans) >= 5))
    assert root.attributes["error.type"] == "ClientGone"
    assert root.attributes["gen_ai.response.finish_reasons"] == ["abort"]
    assert 0 < root.attributes["gen_ai.usage.completion_tokens"] < 2000
    assert others["queue"].duration_s == pytest.approx(0.25, abs=1e-3), "known since the first token"
    assert not root.is_error


def test_one_that_goes_before_its_first_token_is_in_the_queue_as_far_as_anybody_knows(served, collector):
    with served as live:
        live.call(served.engine.gate.clear)
        with pytest.raises(httpx.ReadTimeout):
            live.http.post("/v1/chat/completions", json=CHAT, timeout=0.3)
        LiveServer.wait_for(lambda: served.engine.aborted)
        live.call(served.engine.gate.set)
        root, others = tree(collector.wait(lambda spans: len(spans) >= 3))
    assert set(others) == {"queue", "tokenize"}
    assert others["queue"].attributes["evenflow.is_admission_known"] is False
    assert "gen_ai.latency.time_to_first_token" not in root.attributes


def test_what_is_refused_has_a_trace_that_says_so(collector, tmp_path):
    clients = tmp_path / "clients.toml"
    clients.write_text(f'[clients.alice]\napi_keys = ["{hash_key("k")}"]\nrequests_per_minute = 1\n')
    served = Served(collector, tmp_path, clients_file=clients)
    key = {"authorization": "Bearer k"}
    with served as live:
        statuses = [live.http.post("/v1/chat/completions", json=CHAT, headers=key).status_code for _ in range(2)]
        statuses.append(live.http.post("/v1/chat/completions", json=CHAT).status_code)
        statuses.append(live.http.post("/v1/chat/completions", json={**CHAT, "n": 0}, headers=key).status_code)
        live.http.get("/v1/models", headers=key)
        served.engine.fail_with = RequestOutput("", error_type="EvenFlowError", error="broken")
        live.state.limits._accounts.clear()
        statuses.append(live.http.post("/v1/chat/completions", json=CHAT, headers=key).status_code)
        spans = collector.wait(lambda spans: sum(span.name == "llm_request" for span in spans) >= 5)
    roots = [span for span in spans if span.name == "llm_request"]
    assert statuses == [200, 429, 401, 400, 500]
    assert [root.attributes["http.response.status_code"] for root in roots] == statuses
    assert [root.attributes.get("error.type") for root in roots] == [
        None, "ClientOverLimit", "InvalidKey", "InvalidRequest", "EvenFlowError",
    ]  # fmt: skip
    assert [root.is_error for root in roots] == [False] * 4 + [True]
    assert [root.attributes["evenflow.client"] for root in roots] == ["alice", "alice", "", "alice", "alice"]
    assert len({root.trace_id for root in roots}) == 5


def test_an_answer_that_calls_a_tool_says_so(served, collector):
    tool = {"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}
    served.engine.answer = lambda submit: '<tool_call>\n{"name": "price", "arguments": {}}\n</tool_call>'
    with served as live:
        for is_streamed in (False, True):
            body = {**CHAT, "tools": [tool], "stream": is_streamed}
            assert "price" in live.http.post("/v1/chat/completions", json=body).text
        spans = collector.wait(lambda spans: sum(span.name == "llm_request" for span in spans) >= 2)
    roots = [span for span in spans if span.name == "llm_request"]
    assert [root.attributes["gen_ai.response.finish_reasons"] for root in roots] == [["tool_calls"], ["tool_calls"]]


def test_several_completions_have_a_span_each(served, collector):
    with served as live:
        body = {"model": "base", "prompt": ["one", "two"], "n": 2, "max_tokens": 4}
        assert len(live.http.post("/v1/completions", json=body).json()["choices"]) == 4
        spans = collector.wait(lambda spans: len(spans) >= 1 + 4 * 4 + 1)
    completions = [span for span in spans if span.name == "completion"]
    root = next(span for span in spans if span.name == "llm_request")
    assert [span.attributes["evenflow.completion"] for span in completions] == [0, 1, 2, 3]
    assert {span.parent_id for span in completions} == {root.span_id}
    for name in ("queue", "prefill", "decode"):
        assert {span.parent_id for span in spans if span.name == name} == {span.span_id for span in completions}
    assert root.attributes["gen_ai.operation.name"] == "text_completion"
    assert root.attributes["gen_ai.usage.completion_tokens"] == 16
    assert root.attributes["gen_ai.usage.num_sequences"] == 4


def test_texts_are_sent_only_where_they_are_asked_for(collector, tmp_path):
    with Served(collector, tmp_path, records_texts=True) as live:
        live.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 50})
        root, _ = tree(collector.wait(lambda spans: len(spans) >= 5))
    assert "a secret question" in root.attributes["gen_ai.input.messages"]
    assert root.attributes["gen_ai.output.messages"].startswith("[base] ")


def test_the_variables_of_the_sdk_are_respected(collector, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-llm")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=abc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    with Served(collector, tmp_path) as live:
        live.http.post("/v1/chat/completions", json=CHAT)
        (root, *_) = collector.wait()
    assert (root.resource["service.name"], root.resource["deployment.environment"]) == ("my-llm", "test")
    assert collector.headers[0]["x-token"] == "abc"
    assert collector.headers[0]["content-encoding"] == "gzip"


def test_what_is_not_sampled_is_not_sent_and_said_to_be_so(collector, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    served = Served(collector, tmp_path)
    with served as live:
        live.http.post("/v1/chat/completions", json=CHAT)
        live.http.post("/v1/chat/completions", json=CHAT, headers={"traceparent": PARENT[:-1] + "0"})
        live.http.post("/v1/chat/completions", json=CHAT, headers={"traceparent": PARENT})
        live.http.post("/v1/chat/completions", json=CHAT, headers={"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01"})
        spans = collector.wait()
        time.sleep(0.2)
    assert [span.trace_id for span in spans if span.name == "llm_request"] == [PARENT[3:35]]
    assert [submit.traceparent[-2:] for submit in served.engine.submitted] == ["00", "00", "01", "00"]


def test_a_sdk_that_is_switched_off_sends_nothing(collector, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    served = Served(collector, tmp_path)
    with served as live:
        assert live.http.post("/v1/chat/completions", json=CHAT).status_code == 200
        time.sleep(0.2)
    assert collector.spans == []
    assert served.engine.submitted[0].traceparent == ""


def test_a_collector_that_is_away_costs_spans_and_nothing_else(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    gone = Collector()
    port = gone.port
    gone.close()
    with Served(gone, tmp_path) as live:
        began_s = time.monotonic()
        for _ in range(20):
            assert live.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 3}).status_code == 200
        assert time.monotonic() - began_s < 5
        LiveServer.wait_for(lambda: metric(live, "evenflow_spans_lost_total") > 0, 20)
        assert metric(live, "evenflow_spans_sent_total") == 0
        back = Collector(port)
        try:
            live.http.post("/v1/chat/completions", json=CHAT)
            back.wait()
            LiveServer.wait_for(lambda: metric(live, "evenflow_spans_sent_total") >= 5, 20)
        finally:
            back.close()
    told = [record.getMessage() for record in caplog.records if record.name == "evenflow.traces"]
    assert told == ["traces are not taken by the collector; until they are, spans are lost", "traces are sent again"]


def test_a_collector_that_hangs_holds_up_neither_answers_nor_the_end(collector, tmp_path, monkeypatch):
    collector.stuck_s = 5.0
    monkeypatch.setattr(trace_sender, "MOST_WAITING", 10)
    with Served(collector, tmp_path) as live:
        live.http.post("/v1/chat/completions", json=CHAT)
        time.sleep(0.3)  # the thread is in its first batch now
        began_s = time.monotonic()
        for _ in range(30):
            assert live.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 1}).status_code == 200
        assert time.monotonic() - began_s < 3
        assert metric(live, "evenflow_spans_lost_total") >= 19, "only so many wait"
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 5


def test_addresses_that_are_none_are_refused(tmp_path):
    for address in ("localhost:4318", "grpc://h:4317", "http://"):
        with pytest.raises(ConfigError, match="otlp_endpoint is"):
            trace_sender.TraceSender(address, "base")
    assert trace_sender.traces_address("http://h:4318/") == "http://h:4318/v1/traces"
    assert trace_sender.traces_address("https://h/api/otel/v1/traces") == "https://h/api/otel/v1/traces"


def test_a_real_engine_tells_when_it_copied_the_adapter(collector):
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "evenflow", "serve", "--demo", "--port", "0", "--log-format", "json"]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        lines = []
        while "listening" not in (line := server.stderr.readline()) and line:
            lines.append(json.loads(line))
        url = json.loads(line)["message"].split()[-1]
        with httpx.Client(base_url=url, timeout=60) as http:
            deadline_s = time.monotonic() + 120
            while http.get("/ready").status_code != 200:
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            names = [model["id"] for model in http.get("/v1/models").json()["data"]]
            for _ in range(2):
                body = {"model": names[-1], "prompt": "hello there", "max_tokens": 8, "temperature": 0}
                assert http.post("/v1/completions", json=body).status_code == 200
            spans = collector.wait(lambda spans: sum(span.name == "llm_request" for span in spans) >= 2, 30)
    finally:
        server.terminate()
        rest = server.communicate(timeout=60)[1]
    loads = [span for span in spans if span.name == "load_adapter"]
    roots = [span for span in spans if span.name == "llm_request"]
    assert len(loads) == 1, "the second request finds it there"
    assert loads[0].trace_id == roots[0].trace_id
    assert 0 < loads[0].duration_s < 5
    assert roots[0].start_s <= loads[0].start_s <= loads[0].end_s <= roots[0].end_s
    assert roots[0].attributes["gen_ai.latency.time_in_model_prefill"] > 0
    told = [json.loads(line) for line in rest.splitlines()]
    requests = [line for line in told if line["logger"] == "evenflow.requests" and line.get("completion_tokens")]
    assert [line["trace_id"] for line in requests] == [root.trace_id for root in roots]
