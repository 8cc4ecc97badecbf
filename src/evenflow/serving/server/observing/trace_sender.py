"""Traces over OTLP/HTTP: spans are made and sent by a thread of its own, and lost rather than waited for.

Needs OpenTelemetry's SDK (``evenflow[otel]``). It is the SDK that reads the variables of its specification from the
environment: resource and name of the service, sampler, headers, certificates, compression and timeout of the exporter. The
batches are this thread's own, so that every span that is lost is counted.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from evenflow.base.errors import ConfigError
from evenflow.base.version import __version__
from evenflow.serving.server.observing.request_record import RequestRecord
from evenflow.serving.server.observing.request_spans import ROOT, TracedSpan, spans_of
from evenflow.serving.server.observing.trace_context import CallerContext, TraceContext, read_context

log = logging.getLogger("evenflow.traces")

TRACES_PATH = "/v1/traces"
MOST_WAITING = 4096
"""Requests whose spans are not sent yet; those of any more are lost."""
MOST_IN_A_BATCH = 512
"""Spans, more or less: a request's are not divided."""
DELAY_S = 1.0
"""For requests to gather."""
CLOSE_S = 2.0
"""For the last ones, when the server ends."""
INSTALL = "traces need OpenTelemetry's SDK and exporter: pip install 'evenflow[otel]'"


class TraceSender:
    """A ``RequestObserver`` that sends one trace for each request to the model. ``model``: the base model's name.

    ``service``: the name of the service, where the environment says none. Raises ConfigError without the SDK, and for an
    address that is none.
    """

    def __init__(self, endpoint: str, model: str, *, service: str = "evenflow", delay_s: float = DELAY_S) -> None:
        self._sdk = _Sdk(traces_address(endpoint), service)
        self._model = model
        self._delay_s = delay_s
        self._random = random.Random()  # ids of spans are no secrets
        self._waiting: deque[RequestRecord] = deque()
        self._wake = threading.Event()
        self._ending = threading.Event()
        self.num_sent = 0
        """Spans that the collector has taken."""
        self.num_lost = 0
        """Spans that it has not: it was away, refused them, or took too long."""
        self._is_away = False
        self._thread = threading.Thread(target=self._send_on, name="traces", daemon=True)
        self._thread.start()

    def began(self, record: RequestRecord, headers: Mapping[str, str]) -> None:
        """Give the request its place in the caller's trace, or in a new one."""
        if record.method != "POST" or not self._sdk.is_on:
            return
        caller = read_context(headers)
        trace_id = self._random.getrandbits(128) or 1 if caller is None else caller.trace_id
        is_sampled = self._sdk.is_sampled(trace_id, caller)
        record.trace = TraceContext(trace_id, self._random.getrandbits(64) or 1, is_sampled, caller)

    def ended(self, record: RequestRecord) -> None:
        """Hand the request to the thread."""
        if record.trace is None or not record.trace.is_sampled or not record.operation:
            return
        if len(self._waiting) >= MOST_WAITING:
            self.num_lost += len(spans_of(record, self._model))
            return
        self._waiting.append(record)

    def close(self) -> None:
        """Send what waits, for at most ``CLOSE_S``; what is left then is lost."""
        self._ending.set()
        self._wake.set()
        self._thread.join(CLOSE_S)
        self._sdk.close()

    def _send_on(self) -> None:
        while not self._ending.is_set():
            self._wake.wait(self._delay_s)
            try:
                self._send_waiting()
            except Exception:  # whatever it is, the next batch tries again
                log.exception("traces could not be sent")
        try:
            self._send_waiting()
        except Exception:
            log.exception("the last traces could not be sent")

    def _send_waiting(self) -> None:
        while self._waiting:
            batch: list[Any] = []
            while self._waiting and len(batch) < MOST_IN_A_BATCH:
                record = self._waiting.popleft()
                assert record.trace is not None
                batch += self._sdk.made(spans_of(record, self._model), record.trace, self._random)
            self._count(len(batch), self._sdk.has_sent(batch))

    def _count(self, num_spans: int, is_sent: bool) -> None:
        if is_sent:
            self.num_sent += num_spans
        else:
            self.num_lost += num_spans
        if is_sent == self._is_away:
            self._is_away = not is_sent
            log.warning(
                "traces are %s", "sent again" if is_sent else "not taken by the collector; until they are, spans are lost"
            )


class _Sdk:
    """The little that is needed of the SDK."""

    def __init__(self, address: str, service: str) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk import trace as sdk
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace.export import SpanExportResult
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError as error:
            raise ConfigError(INSTALL) from error
        self._trace, self._sdk, self._result = trace, sdk, SpanExportResult
        # The exporter's messages repeat with every batch; the sender says once that the collector is away.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        told = OTELResourceDetector().detect()
        named = Resource({SERVICE_NAME: service, "service.version": __version__})
        self._resource = Resource.create().merge(named).merge(told)
        provider = sdk.TracerProvider(resource=self._resource, shutdown_on_exit=False)
        self.is_on = isinstance(provider.get_tracer("evenflow"), sdk.Tracer)
        """False: OTEL_SDK_DISABLED."""
        self._sampler = provider.sampler
        self._scope = InstrumentationScope("evenflow", __version__)
        self._exporter = OTLPSpanExporter(endpoint=address)

    def is_sampled(self, trace_id: int, caller: CallerContext | None) -> bool:
        """Whether the sampler of the environment keeps the trace; by default all, or those that the caller keeps."""
        context = None
        if caller is not None:
            parent = self._context(caller.trace_id, caller.span_id, caller.is_sampled, is_remote=True)
            context = self._trace.set_span_in_context(self._trace.NonRecordingSpan(parent))
        decision = self._sampler.should_sample(context, trace_id, ROOT, kind=self._trace.SpanKind.SERVER).decision
        return bool(decision.is_sampled())

    def made(self, spans: Sequence[TracedSpan], place: TraceContext, ids: random.Random) -> list[Any]:
        """The SDK's spans for one request's."""
        trace, caller = self._trace, place.caller
        state = caller.state if caller is not None else ""
        contexts = [self._context(place.trace_id, place.span_id, True, state)]
        contexts += [self._context(place.trace_id, ids.getrandbits(64) or 1, True, state) for _ in spans[1:]]
        above = None if caller is None else self._context(caller.trace_id, caller.span_id, True, is_remote=True)
        return [
            self._sdk.ReadableSpan(
                name=span.name,
                context=context,
                parent=above if span.parent is None else contexts[span.parent],
                resource=self._resource,
                attributes=dict(span.attributes),
                kind=trace.SpanKind.SERVER if span.parent is None else trace.SpanKind.INTERNAL,
                status=trace.Status(trace.StatusCode.ERROR, span.message) if span.is_error else trace.Status(),
                start_time=round(span.start_s * 1e9),
                end_time=round(span.end_s * 1e9),
                instrumentation_scope=self._scope,
            )
            for span, context in zip(spans, contexts, strict=True)
        ]

    def has_sent(self, batch: Sequence[Any]) -> bool:
        """Send spans; waits as long as the exporter tries. False: they are lost."""
        try:
            return self._exporter.export(batch) is self._result.SUCCESS
        except Exception as error:
            log.debug("the exporter failed: %s", error)
            return False

    def close(self) -> None:
        """Stop trying."""
        self._exporter.shutdown()

    def _context(self, trace_id: int, span_id: int, is_sampled: bool, state: str = "", *, is_remote: bool = False) -> Any:
        flags = self._trace.TraceFlags(int(is_sampled))
        states = self._trace.TraceState.from_header([state]) if state else None
        return self._trace.SpanContext(trace_id, span_id, is_remote, flags, states)


def traces_address(endpoint: str) -> str:
    """``http://collector:4318`` stands for its ``/v1/traces``; another path is taken as it is. Raises ConfigError."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"otlp_endpoint is {endpoint!r}; allowed: an address of a collector like http://127.0.0.1:4318 (OTLP over HTTP)"
        )
    return urlunsplit(parts._replace(path=TRACES_PATH)) if parts.path in ("", "/") else endpoint


__all__ = ["TraceSender", "traces_address"]
