"""What is under way with one engine, however it is reached: streams by request, calls by number, its latest word.

Whoever owns the connection hands over how a message is sent, and gives every message that comes to ``take``. One event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from evenflow.base.children import error_from_name
from evenflow.base.errors import EvenFlowError
from evenflow.serving.client.completion_stream import CompletionStream
from evenflow.serving.client.messages import (
    Abort,
    AdapterInfo,
    Answer,
    EngineStats,
    Failed,
    FromEngine,
    ListAdapters,
    LoadAdapter,
    Outputs,
    PinAdapter,
    Ready,
    RequestOutput,
    Submit,
    SubmitAll,
    ToEngine,
    UnloadAdapter,
    Usage,
)

ABORTED = "abort"
"""Finish reason of what the engine says last of a request that was aborted."""


class Sink(Protocol):
    """Where the outputs of one request go, and what ends them: a queue, or anything that takes them as they come."""

    def put_nowait(self, item: RequestOutput | EvenFlowError, /) -> None:
        """Take the next one."""
        ...


class Conversation:
    """``send`` waits until a message is on its way, and raises if it never will be; ``send_now`` tries, and does not wait."""

    def __init__(self, send: Callable[[ToEngine], Awaitable[None]], send_now: Callable[[ToEngine], object]) -> None:
        self._send = send
        self._send_now = send_now
        self._queues: dict[str, Sink] = {}
        self._calls: dict[int, asyncio.Future[list[AdapterInfo]]] = {}
        self._call_ids = itertools.count(1)
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        """What the engine said when it was warm."""
        self.stats = EngineStats()
        """The latest snapshot."""
        self.on_aborted: Callable[[str, Usage], object] = lambda request_id, usage: None
        """Called with what a request took that was aborted from this side, when the engine has stopped working on it."""
        self.death: EvenFlowError | None = None
        """Why nothing more will come; None: it may."""

    @property
    def is_ready(self) -> bool:
        """True once the engine is warm, until the conversation has ended."""
        return self.death is None and self.ready.done() and self.ready.exception() is None

    def streams(self, message: Submit | SubmitAll) -> list[CompletionStream]:
        """One stream for each completion that ``message`` starts. It is sent when the first of them is read."""
        if self.death is not None:
            raise self.death
        sending: asyncio.Task[None] | None = None

        async def start() -> None:
            nonlocal sending
            if sending is None:
                sending = asyncio.ensure_future(self._send_message(message))
            await asyncio.shield(sending)

        def forget(request_id: str, is_running: bool) -> None:
            self._queues.pop(request_id, None)
            if is_running and sending is not None:
                sending.add_done_callback(lambda _: self._abort(request_id))  # not before it was sent

        submits = [message] if isinstance(message, Submit) else message.submits()
        streams = []
        for request_id in [submit.request_id for submit in submits]:
            assert request_id not in self._queues, f"request {request_id} is running already"
            streams.append(CompletionStream(start, partial(forget, request_id)))
            self._queues[request_id] = streams[-1].queue
        return streams

    async def relay(self, message: Submit | SubmitAll, sinks: Mapping[str, Sink]) -> None:
        """Send ``message``; the outputs of each of its requests go to its sink until the last one, or ``forget``."""
        if self.death is not None:
            raise self.death
        self._queues |= sinks
        await self._send(message)

    def forget(self, request_id: str, *, is_running: bool) -> None:
        """Give a relayed request's sink nothing more; ``is_running``: and abort the request."""
        if self._queues.pop(request_id, None) is not None and is_running:
            self._abort(request_id)

    async def load_adapter(
        self,
        name: str,
        path: str,
        replace: bool = False,
        *,
        must_read: bool = False,
        boundary: str = "",
        client_id: str = "",
    ) -> list[AdapterInfo]:
        """Register the PEFT adapter in folder ``path``, for ``client_id``. Raises AdapterRejected and other AdapterErrors."""
        message = LoadAdapter(next(self._call_ids), name, path, replace, must_read, boundary, client_id=client_id)
        return await self._call(message)

    async def combine_adapters(self, name: str, parts: Sequence[tuple[str, float]]) -> list[AdapterInfo]:
        """Register the weighted sum of registered adapters. Raises AdapterRejected, AdapterNotFound or AdapterExists."""
        return await self._call(LoadAdapter(next(self._call_ids), name, "", parts=list(parts)))

    async def unload_adapter(self, name: str, purge: bool = False) -> list[AdapterInfo]:
        """Forget ``name``; memory is freed when its last request ends. Raises AdapterNotFound."""
        return await self._call(UnloadAdapter(next(self._call_ids), name, purge))

    async def pin_adapter(self, name: str, is_pinned: bool) -> list[AdapterInfo]:
        """Keep the adapter in the arena, or let it be evicted again. Raises AdapterNotFound."""
        return await self._call(PinAdapter(next(self._call_ids), name, is_pinned))

    async def list_adapters(self) -> list[AdapterInfo]:
        """Every registered adapter, and those that still drain."""
        return await self._call(ListAdapters(next(self._call_ids)))

    def take(self, message: FromEngine) -> None:
        """A message has come. After ``Failed`` nothing more is taken."""
        if isinstance(message, Outputs):
            for output in message.outputs:
                queue = self._queues.get(output.request_id)
                if queue is not None:
                    queue.put_nowait(output)
                elif output.finish_reason == ABORTED and output.usage is not None:
                    self.on_aborted(output.request_id, output.usage)
            if message.stats is not None:
                self.stats = message.stats
        elif isinstance(message, Answer):
            self._answer(message)
        elif isinstance(message, Ready):
            if not self.ready.done():
                self.ready.set_result(message)
        elif isinstance(message, Failed):
            self.end(error_from_name(message.error_type, message.error))

    def end(self, error: EvenFlowError) -> None:
        """Nothing more will come: whoever waits gets ``error``."""
        self.death = error
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # retrieved: nobody may be waiting
        for queue in list(self._queues.values()):  # a sink may forget its request
            queue.put_nowait(error)
        for future in self._calls.values():
            if not future.done():
                future.set_exception(error)

    async def _send_message(self, message: ToEngine) -> None:
        await self._send(message)

    def _abort(self, request_id: str) -> None:
        if self.death is None:
            self._send_now(Abort([request_id]))

    async def _call(self, message: LoadAdapter | UnloadAdapter | PinAdapter | ListAdapters) -> list[AdapterInfo]:
        if self.death is not None:
            raise self.death
        future: asyncio.Future[list[AdapterInfo]] = asyncio.get_running_loop().create_future()
        self._calls[message.call_id] = future
        try:
            await self._send(message)
            return await future
        finally:
            self._calls.pop(message.call_id, None)

    def _answer(self, answer: Answer) -> None:
        future = self._calls.get(answer.call_id)
        if future is None or future.done():
            return
        if answer.error_type is None:
            future.set_result(answer.adapters)
        else:
            future.set_exception(error_from_name(answer.error_type, answer.error, answer.reasons))


__all__ = ["Conversation", "Sink"]
