"""A collector of traces: takes OTLP over HTTP on 127.0.0.1, and keeps what came."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


@dataclass
class Span:
    """One span as it came."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_s: float
    end_s: float
    attributes: dict[str, Any]
    is_error: bool
    state: str
    resource: dict[str, Any] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return [_plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


class Collector:
    """Starts at once; ``port`` may be given again, after ``close``. ``status``: what it answers; ``stuck_s``: how late."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Span] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.stuck_s = 0.0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    data = gzip.decompress(data)
                time.sleep(collector.stuck_s)
                collector.paths.append(self.path)
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                if collector.status == 200:
                    collector._take(ExportTraceServiceRequest.FromString(data))
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self, is_there: Callable[[list[Span]], Any] = bool, timeout_s: float = 20.0) -> list[Span]:
        """The spans, as soon as ``is_there`` says of them that all have come."""
        deadline_s = time.monotonic() + timeout_s
        while not is_there(self.spans):
            assert time.monotonic() < deadline_s, [span.name for span in self.spans]
            time.sleep(0.01)
        return self.spans

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for of_resource in request.resource_spans:
            resource = {one.key: _plain(one.value) for one in of_resource.resource.attributes}
            for of_scope in of_resource.scope_spans:
                assert of_scope.scope.name == "evenflow"
                self.spans += [
                    Span(
                        one.name,
                        one.trace_id.hex(),
                        one.span_id.hex(),
                        one.parent_span_id.hex(),
                        one.kind,
                        one.start_time_unix_nano / 1e9,
                        one.end_time_unix_nano / 1e9,
                        {pair.key: _plain(pair.value) for pair in one.attributes},
                        one.status.code == 2,
                        one.trace_state,
                        resource,
                    )
                    for one in of_scope.spans
                ]
