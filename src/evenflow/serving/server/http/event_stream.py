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

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keep-alive\n\n"
_encode = msgspec.json.Encoder().encode


class ClientGone(Exception):
    """The client closed the connection before its answer was ready, or reads none of it."""


def event(body: msgspec.Struct, name: str = "") -> bytes:
    """One event, encoded once; ``name`` is its type, for protocols that have several."""
    start = b"data: " if not name else b"event: " + name.encode() + b"\ndata: "
    return start + _encode(body) + b"\n\n"


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
    take a long queue for a dead server. An error after that becomes a last event, which ``on_error`` writes.

    Events are taken as they come, whether the client reads them or not; when more than ``max_unread_bytes`` of them wait
    to be read, ``on_unread`` is told and the stream ends.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: Callable[[], Mapping[str, str]],
        *,
        keepalive_s: float,
        max_unread_bytes: int,
        on_error: Callable[[Exception], bytes],
        on_unread: Callable[[], None],
    ) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._make_headers = headers
        self._keepalive_s = keepalive_s
        self._max_unread_bytes = max_unread_bytes
        self._on_error = on_error
        self._on_unread = on_unread
        self._is_started = False
        self._waiting: list[bytes] = []
        self._num_waiting_bytes = 0
        self._has_ended = False
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop when the client goes."""
        with contextlib.suppress(ClientGone):
            await while_connected(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        tasks = (asyncio.ensure_future(self._take()), asyncio.ensure_future(self._deliver(send)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, send: Send) -> None:
        """Send what is in the buffer, as fast as the client reads."""
        while True:
            if not self._waiting and not self._has_ended and not await self._wait_for_events():
                self._waiting.append(KEEPALIVE)
            if not self._waiting:
                break
            chunk, self._waiting, self._num_waiting_bytes = b"".join(self._waiting), [], 0
            await self._send(send, chunk)
        if self._failure is not None:
            raise self._failure
        await self._send(send, b"", more=False)

    async def _take(self) -> None:
        """Move events into the buffer until they end."""
        try:
            async with contextlib.aclosing(self._events) as events:
                async for chunk in events:
                    self._waiting.append(chunk)
                    self._num_waiting_bytes += len(chunk)
                    if self._num_waiting_bytes > self._max_unread_bytes:
                        self._on_unread()
                        raise ClientGone
                    self._wake.set()
        except ClientGone:
            raise
        except Exception as error:
            if self._is_started or self._waiting:
                self._waiting.append(self._on_error(error))
            else:
                self._failure = error
        finally:
            self._has_ended = True
            self._wake.set()

    async def _wait_for_events(self) -> bool:
        """True as soon as there are events or they have ended; False after a time of silence."""
        self._wake.clear()
        try:
            async with asyncio.timeout(self._keepalive_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    async def _send(self, send: Send, chunk: bytes, more: bool = True) -> None:
        if not self._is_started:
            self._is_started = True
            self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **self._make_headers()})
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": chunk, "more_body": more})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
