"""One HTTP connection with an end to everything: bytes and lines of headers, time, and what is not read.

uvicorn's httptools protocol parses fast and bounds nothing before the application sees a request; this subclass counts
what arrives and keeps a clock beside it. What is too much is answered once, as far as it can be, and closed.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from evenflow.serving.server.http.connection_books import ConnectionBooks

MOST_PIPELINED = 16
"""Requests that wait on one connection for the one before them."""
LEAST_BYTES_PER_S = 1024
"""A client that reads less of its answer, over the send timeout, reads nothing."""
_OVERHEAD_PER_BYTE = 16
"""Of a chunked body: the framing of chunks of a byte each takes six."""
_END_OF_HEADERS = b"\r\n\r\n"


class Phase(enum.Enum):
    """What the next byte of a connection belongs to."""

    IDLE = "idle"
    """Nothing, or the first byte of the next request."""
    HEADERS = "headers"
    BODY = "body"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one server allows; the fields are those of ServerConfig."""

    max_header_bytes: int
    max_headers: int
    max_connections: int
    header_timeout_s: float
    body_timeout_s: float
    send_timeout_s: float


def bounded_protocol(limits: ConnectionLimits, books: ConnectionBooks) -> type[BoundedConnection]:
    """The protocol class that uvicorn is given: one for each server, since it takes no further arguments."""
    return type("BoundedConnection", (BoundedConnection,), {"limits": limits, "books": books})


class BoundedConnection(HttpToolsProtocol):
    """See the module. Made by uvicorn, one for each connection; used in the server's event loop alone."""

    limits: ConnectionLimits
    books: ConnectionBooks

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._phase = Phase.IDLE
        self._num_header_bytes = 0
        self._num_message_bytes = 0
        """Since the headers' end, framing included."""
        self._num_body_bytes = 0
        self._tail = b""
        """The last bytes before, where the end of the headers may begin."""
        self._request_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._is_counted = False
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it if there are too many."""
        if len(self.connections) >= self.limits.max_connections:
            self.transport = transport
            self._refuse("too_many", 503, b"Service Unavailable", b"too many connections are open", b"retry-after: 1\r\n")
            return
        super().connection_made(transport)
        self._is_counted = True
        self.books.num_open += 1
        self.books.num_accepted += 1
        self._start_request_timer(self.limits.header_timeout_s, self._headers_are_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what the connection held."""
        if self._is_counted:
            self._is_counted = False
            self.books.num_open -= 1
        self._stop_request_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count, then parse."""
        if self._is_refused or self.transport.is_closing():
            return
        if self._phase is Phase.IDLE:
            self._phase, self._num_header_bytes, self._tail = Phase.HEADERS, 0, b""
            self._start_request_timer(self.limits.header_timeout_s, self._headers_are_late)
        if self._phase is Phase.HEADERS:
            end = (self._tail + data).find(_END_OF_HEADERS)
            self._num_header_bytes += len(data) if end < 0 else end + len(_END_OF_HEADERS) - len(self._tail)
            self._tail = (self._tail + data[-3:])[-3:]
            if self._num_header_bytes > self.limits.max_header_bytes:
                self._refuse_headers()
                return
        else:
            self._num_message_bytes += len(data)
            allowance = self.limits.max_header_bytes + _OVERHEAD_PER_BYTE * self._num_body_bytes
            if self._num_message_bytes - self._num_body_bytes - len(data) > allowance:
                self._refuse_headers()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """The first byte of a request has been parsed."""
        super().on_message_begin()
        self._num_body_bytes = self._num_message_bytes = 0
        if self._phase is Phase.IDLE:  # behind another request in the same bytes
            self._phase, self._num_header_bytes, self._tail = Phase.HEADERS, 0, b""
            self._start_request_timer(self.limits.header_timeout_s, self._headers_are_late)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line, or one trailer."""
        if self._is_refused:
            return
        if len(self.headers) >= self.limits.max_headers:
            self._refuse_headers()
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application."""
        if self._is_refused:
            return
        self._phase = Phase.BODY
        self._start_request_timer(self.limits.body_timeout_s, self._body_is_late)
        if len(self.pipeline) >= MOST_PIPELINED:
            self._close("unread")
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._num_body_bytes += len(body)
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has come to its end."""
        self._phase = Phase.IDLE
        self._stop_request_timer()
        if not self._is_refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is written; it may still have to be read."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._start_send_timer()

    def timeout_keep_alive_handler(self) -> None:
        """The connection has been idle for long enough."""
        super().timeout_keep_alive_handler()
        self._start_send_timer()

    def shutdown(self) -> None:
        """The server ends."""
        super().shutdown()
        if self.transport.is_closing():
            self._start_send_timer()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        super().pause_writing()
        self._start_send_timer()

    def resume_writing(self) -> None:
        """The client has read what was waiting."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_send_timer()

    def send_400_response(self, msg: str) -> None:
        """The bytes were no HTTP; nothing is said if something was refused already."""
        if not self._is_refused:
            super().send_400_response(msg)
            self._start_send_timer()

    def _refuse_headers(self) -> None:
        message = (
            f"the headers are too large; allowed: {self.limits.max_header_bytes} bytes and {self.limits.max_headers} lines"
        )
        self._refuse("header_size", 431, b"Request Header Fields Too Large", message.encode())

    def _headers_are_late(self) -> None:
        if self._phase is Phase.IDLE:  # a connection that never asked anything
            self._close("header_time")
            return
        self._refuse("header_time", 408, b"Request Timeout", b"the headers did not come in time", b"")

    def _body_is_late(self) -> None:
        self._refuse("body_time", 408, b"Request Timeout", b"the body did not come in time", b"")

    def _refuse(self, reason: str, status: int, phrase: bytes, message: bytes, headers: bytes = b"") -> None:
        """Answer once, unless another answer has begun, and close."""
        is_answering = self.cycle is not None and not self.cycle.response_complete and self.cycle.response_started
        if self._is_refused or is_answering or self.pipeline:
            self._close(reason)
            return
        body = b'{"error":{"message":"%b","type":"%b","param":null,"code":null}}' % (
            message,
            b"server_error" if status >= 500 else b"invalid_request_error",
        )
        self._note(reason)
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n%b"
            % (status, phrase, len(body), headers, body)
        )
        self.transport.close()
        self._start_send_timer()

    def _close(self, reason: str) -> None:
        """Close without a word, and without waiting for what was not read."""
        self._note(reason)
        self.transport.abort()

    def _note(self, reason: str) -> None:
        self._stop_request_timer()
        if not self._is_refused:
            self._is_refused = True
            self.books.num_closed[reason] += 1

    def _start_request_timer(self, seconds: float, late: Any) -> None:
        self._stop_request_timer()
        self._request_timer = self.loop.call_later(seconds, late)

    def _stop_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _start_send_timer(self) -> None:
        self._stop_send_timer()
        self._send_timer = self.loop.call_later(
            self.limits.send_timeout_s, self._check_reading, self.transport.get_write_buffer_size()
        )

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _check_reading(self, num_bytes_before: int) -> None:
        """Give up a client that has read next to nothing since the timer was started."""
        num_read = num_bytes_before - self.transport.get_write_buffer_size()
        if num_read >= LEAST_BYTES_PER_S * self.limits.send_timeout_s:
            self._start_send_timer()
        else:
            self._close("send_time")
