"""Lines of requests: who, what, how it ended, by id; and never what was said, unless that is wanted."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import httpx
import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer, make_adapter

from evenflow.access.keys import hash_key
from evenflow.base.errors import ConfigError
from evenflow.base.json_lines import JsonFormatter
from evenflow.cli.main import build_parser
from evenflow.cli.otlp_environment import endpoint_of_environment
from evenflow.cli.serve import read_command
from evenflow.serving.client.messages import Usage
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.server.app import create_app
from evenflow.serving.server.observing.request_record import CallProgress, RequestRecord
from evenflow.serving.server.observing.request_spans import MOST_COMPLETIONS, spans_of
from evenflow.serving.server.observing.trace_context import LONGEST_STATE, TraceContext, read_context
from evenflow.serving.server.server_config import ServerConfig

CHAT: dict[str, Any] = {"model": "a", "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 4}


class Lines(logging.Handler):
    """Every line of requests, as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def lines():
    log, handler = logging.getLogger("evenflow.requests"), Lines()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler.lines
    log.removeHandler(handler)
    log.setLevel(level)


def serve(tmp_path, **options: Any) -> tuple[FakeEngine, LiveServer]:
    clients = tmp_path / "clients.toml"
    clients.write_text(f'[clients.alice]\napi_keys = ["{hash_key("k")}"]\nmax_queued_requests = 3\n')
    engine = FakeEngine(max_model_len=4096)
    config = ServerConfig(served_model_names=("base",), clients_file=clients, log_requests=True, **options)
    adapters = {"a": make_adapter(tmp_path, "a", "a")}
    return engine, LiveServer(create_app(engine, FakeTokenizer(), FakeTemplate(), config, adapters))


def test_each_request_has_a_line_under_the_id_of_its_answer(tmp_path, lines):
    _, live = serve(tmp_path)
    key = {"authorization": "Bearer k"}
    with live:
        whole = live.http.post("/v1/chat/completions", json=CHAT, headers={**key, "x-request-id": "mine-7"})
        stream = live.http.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=key)
        over = live.http.post("/v1/chat/completions", json={**CHAT, "n": 4}, headers=key)
        nobody = live.http.post("/v1/chat/completions", json=CHAT)
        models = live.http.get("/v1/models?secret=1", headers=key)
        live.http.get("/health")
        live.http.get("/metrics")
        LiveServer.wait_for(lambda: len(lines) >= 5)
    answers = [whole, stream, over, nobody, models]
    assert [line["request_id"] for line in lines] == [answer.headers["x-request-id"] for answer in answers]
    assert lines[0]["request_id"] == "mine-7"
    assert [line["status"] for line in lines] == [200, 200, 429, 401, 200]
    assert [line.get("error") for line in lines] == [None, None, "ClientOverLimit", "InvalidKey", None]
    assert [line.get("client") for line in lines] == ["alice", "alice", "alice", None, None]
    for line in lines[:2]:
        usage = whole.json()["usage"]
        assert (line["adapter"], line["model"], line["path"]) == ("a", "a", "/v1/chat/completions")
        assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], 4)
        assert (line["queue_s"], line["prefill_s"], line["decode_s"]) == (0.25, 0.5, 1.0)
        assert 0 <= line["first_token_s"] <= line["total_s"] < 10
        assert line["finish_reasons"] == ["length"]
        assert line["level"] == "info"
    assert "secret" not in json.dumps(lines)


def test_a_caller_that_goes_is_told_with_what_it_had(tmp_path, lines):
    engine, live = serve(tmp_path)
    with live:
        engine.step_s = 0.05
        engine.answer = lambda submit: "x" * 1000
        body = {**CHAT, "max_tokens": 1000}
        with pytest.raises(httpx.ReadTimeout):
            live.http.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer k"}, timeout=0.4)
        LiveServer.wait_for(lambda: lines)
    assert lines[0]["error"] == "ClientGone"
    assert lines[0]["finish_reasons"] == ["abort"]
    assert 0 < lines[0]["completion_tokens"] < 1000


def test_texts_stand_in_lines_only_where_they_are_recorded(tmp_path, lines):
    _, live = serve(tmp_path, records_texts=True)
    with live:
        answer = live.http.post("/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer k"})
        LiveServer.wait_for(lambda: lines)
    assert "a secret" in lines[0]["prompts"][0]
    assert lines[0]["answers"] == [answer.json()["choices"][0]["message"]["content"]]


def test_a_line_of_json_is_one_line_whatever_names_hold():
    record = logging.LogRecord("x", logging.WARNING, "", 0, "a\nb\u2028\x1b[31m %s", ("\udc80",), None)
    record.fields = {"client": "e\nvil", "message": "forged", "time": 0}
    line = JsonFormatter("rank 1: ").format(record)
    assert line.isascii()
    assert line.isprintable()
    told = json.loads(line)
    assert told["message"] == "a\nb\u2028\x1b[31m \udc80"
    assert (told["client"], told["process"], told["level"]) == ("e\nvil", "rank 1", "warning")
    assert told["time"].endswith("Z")
    try:
        raise ValueError("why")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "ValueError: why" in json.loads(JsonFormatter().format(record))["exception"]


def command(*words: str, **environment: str):
    args = build_parser().parse_args(["serve", "--demo", *words])
    args.log_level = "info"
    return read_command(args, environment)


def test_json_logs_bring_lines_of_requests_unless_they_are_not_wanted():
    assert not command().server.log_requests
    assert command("--log-format", "json").server.log_requests
    assert not command("--log-format", "json", "--no-log-requests").server.log_requests
    assert command("--log-format", "json").engine.log_format == "json"
    assert command("--otlp-traces-endpoint", "http://h:4318").server.otlp_endpoint == "http://h:4318"


def test_traces_without_the_sdk_are_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'evenflow\[otel\]'"):
        create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(otlp_endpoint="http://127.0.0.1:4318"))


def test_what_the_environment_asks_for_in_vain_keeps_no_server_from_starting(monkeypatch, caplog):
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318/"}
    monkeypatch.setattr("evenflow.cli.otlp_environment._is_installed", lambda module: False)
    assert endpoint_of_environment(asked) == ""
    assert "pip install" in caplog.text
    monkeypatch.setattr("evenflow.cli.otlp_environment._is_installed", lambda module: True)
    assert endpoint_of_environment(asked) == "http://h:4318/v1/traces"
    assert endpoint_of_environment({**asked, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/x"}) == "http://t/x"
    assert endpoint_of_environment({**asked, "OTEL_TRACES_EXPORTER": "none"}) == ""
    assert endpoint_of_environment({**asked, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}) == ""
    assert endpoint_of_environment({}) == ""


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
    ],
)
def test_a_broken_context_is_none(header):
    assert read_context({"traceparent": header}) is None


def test_a_context_is_taken_and_sent_on():
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    found = read_context({"traceparent": header, "tracestate": "a=1"})
    assert found is not None
    assert (found.is_sampled, found.state) == (True, "a=1")
    assert TraceContext(found.trace_id, found.span_id, True).traceparent == header
    later = read_context({"traceparent": "cc" + header[2:] + "-more", "tracestate": "x" * (LONGEST_STATE + 1)})
    assert later is not None
    assert later.state == ""


def test_spans_are_bounded_and_never_end_before_they_start():
    call = CallProgress("cmpl-1", SamplingParams(), 1000, arrival_s=10.0)
    for index in range(1000):  # an engine's clock that is ahead of the server's
        call.usages[index] = Usage(1, 1, queue_s=0.0, prefill_s=0.5, decode_s=0.25, adapter_load_at_s=-1.0, adapter_load_s=0.1)
    record = RequestRecord("r", "POST", "/x", 10.5, 1000.5, operation="chat", call=call, status=200, ended_s=11.0)
    spans = spans_of(record, "base")
    assert sum(span.name == "completion" for span in spans) == MOST_COMPLETIONS
    assert len(spans) == 1 + 5 * MOST_COMPLETIONS
    for place, span in enumerate(spans):
        assert span.start_s <= span.end_s
        assert span.start_s >= 1000.5
        assert span.parent is None or span.parent < place
