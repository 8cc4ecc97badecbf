"""Server-sent events, and noticing that a client has gone: closing what works for it aborts it.

uvicorn does not tell a sender that nobody listens any more; the ``receive`` side does. So whatever runs for
a client runs beside a task that waits for its disconnect.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from evenflow.serving.server.http.error_answers import body_of

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keep-alive\n\n"
_encode = msgspec.json.Encoder().encode


class ClientGone(Exception):
    """The client closed the connection before its answer was ready."""


def event(body: msgspec.Struct) -> bytes:
    """One event, encoded once."""
    return b"data: " + _encode(body) + b"\n\n"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work``, cancelling it when the client goes (the request's body must have been read). Raises ClientGone."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream(Response):
    """Sends events as they come. Until the first one the status is open: an error before it is raised, not streamed.

    After ``keepalive_s`` of silence a comment goes out (and with it the status 200), so that proxies do not
    take a long queue for a dead server. An error after that becomes a last event, without [DONE].
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: Callable[[], Mapping[str, str]],
        keepalive_s: float,
        on_error: Callable[[Exception], None],
    ) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._make_headers = headers
        self._keepalive_s = keepalive_s
        self._on_error = on_error
        self._is_started = False
        self._is_quiet = True
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop when the client goes."""
        keepalive = asyncio.ensure_future(self._keep_alive(send))
        try:
            await while_connected(receive, self._run(send))
        except ClientGone:
            pass
        finally:
            keepalive.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keepalive

    async def _run(self, send: Send) -> None:
        try:
            async with contextlib.aclosing(self._events) as events:
                async for chunk in events:
                    await self._send(send, chunk)
        except Exception as error:
            if not self._is_started:
                raise
            self._on_error(error)
            await self._send(send, event(body_of(error)))
        await self._send(send, b"", more=False)

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._keepalive_s)
            if self._is_quiet:
                await self._send(send, KEEPALIVE)
            self._is_quiet = True

    async def _send(self, send: Send, chunk: bytes, more: bool = True) -> None:
        async with self._lock:
            self._is_quiet = False
            if not self._is_started:
                self._is_started = True
                self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **self._make_headers()})
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": chunk, "more_body": more})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
