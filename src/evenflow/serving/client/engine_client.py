"""The asyncio end of an engine process: what the HTTP server holds.

One task reads the socket and hands each output to its request's queue. Nothing here knows HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial

import zmq
import zmq.asyncio

from evenflow.base.children import error_from_name
from evenflow.base.errors import EngineDead, EvenFlowError
from evenflow.serving.client.codec import encoder, from_engine_decoder
from evenflow.serving.client.completion_stream import CompletionStream
from evenflow.serving.client.messages import (
    Abort,
    AdapterInfo,
    Answer,
    EngineStats,
    Failed,
    ListAdapters,
    LoadAdapter,
    Outputs,
    PinAdapter,
    Ready,
    RequestOutput,
    SetWeights,
    Shutdown,
    Submit,
    SubmitAll,
    ToEngine,
    UnloadAdapter,
)
from evenflow.serving.client.process import STOP_S, EngineProcess
from evenflow.serving.config.engine_config import EngineConfig

_WATCH_S = 0.5
_RETRY_SEND_S = 0.05


class EngineClient:
    """Starts an engine process and speaks to it. Create and use inside one running event loop.

    Raises the errors of evenflow.base.errors; EngineDead from every call once the process has ended.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.set_hwm(0)
        try:
            self.process = EngineProcess(config, self._socket.bind)
        except BaseException:
            self._socket.close(0)
            self._context.term()
            raise
        self._queues: dict[str, asyncio.Queue[RequestOutput | EvenFlowError]] = {}
        self._calls: dict[int, asyncio.Future[list[AdapterInfo]]] = {}
        self._call_ids = itertools.count(1)
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._stats = EngineStats()
        self._death: EvenFlowError | None = None
        self._is_closing = False
        self._reader = asyncio.create_task(self._read())
        self._watcher = asyncio.create_task(self._watch())

    @property
    def is_alive(self) -> bool:
        """True until the engine process has ended."""
        return self._death is None

    @property
    def trouble(self) -> str | None:
        """Why nothing can be served, or probably soon nothing: the engine is dead, or shows no life. None: all is well."""
        return str(self._death) if self._death is not None else self.process.trouble

    @property
    def is_ready(self) -> bool:
        """True once the engine is warm."""
        return self.is_alive and self._ready.done() and self._ready.exception() is None

    @property
    def info(self) -> Ready:
        """What the engine said when it was warm; only after ``wait_until_ready``."""
        return self._ready.result()

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot."""
        return self._stats

    async def wait_until_ready(self) -> Ready:
        """Wait until the engine is warm. Raises what it died of."""
        return await asyncio.shield(self._ready)

    async def wait_until_dead(self) -> EvenFlowError | None:
        """Wait until the engine has ended; the reason, or None after ``close``."""
        await asyncio.wait([self._reader])
        return None if self._is_closing else self._death

    def submit(self, submit: Submit) -> AsyncIterator[RequestOutput]:
        """Run one request; yields until an output has ``finish_reason`` or ``error_type``.

        Closing or cancelling the iterator before that aborts the request in the engine.
        """
        return self._streams(submit, [submit.request_id])[0]

    def submit_all(self, group: SubmitAll) -> list[AsyncIterator[RequestOutput]]:
        """Run several completions of one prompt; one iterator each, as ``submit`` gives. Sent when the first is read."""
        return list(self._streams(group, [submit.request_id for submit in group.submits()]))

    def _streams(self, message: Submit | SubmitAll, request_ids: Sequence[str]) -> list[CompletionStream]:
        self._check_alive()
        sending: asyncio.Task[None] | None = None

        async def start() -> None:
            nonlocal sending
            if sending is None:
                sending = asyncio.create_task(self._send(message))
            await asyncio.shield(sending)

        def forget(request_id: str, is_running: bool) -> None:
            self._queues.pop(request_id, None)
            if is_running and sending is not None:
                sending.add_done_callback(lambda _: self._abort(request_id))  # not before it was sent

        streams = []
        for request_id in request_ids:
            assert request_id not in self._queues, f"request {request_id} is running already"
            streams.append(CompletionStream(start, partial(forget, request_id)))
            self._queues[request_id] = streams[-1].queue
        return streams

    def _abort(self, request_id: str) -> None:
        if self.is_alive and not self._is_closing:
            self._send_now(encoder.encode(Abort([request_id])))

    async def load_adapter(
        self, name: str, path: str, replace: bool = False, *, must_read: bool = False, boundary: str = ""
    ) -> list[AdapterInfo]:
        """Register the PEFT adapter in folder ``path``. Raises AdapterRejected, AdapterNotFound or AdapterExists."""
        return await self._call(LoadAdapter(next(self._call_ids), name, path, replace, must_read, boundary))

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

    async def set_weights(
        self,
        weight_by_client: Mapping[str, float],
        tier_by_client: Mapping[str, str] | None = None,
        weight_by_tier: Mapping[str, float] | None = None,
    ) -> None:
        """Replace the own weights of clients that differ from 1, and the tiers."""
        await self._send(SetWeights(dict(weight_by_client), dict(tier_by_client or {}), dict(weight_by_tier or {})))

    async def close(self) -> None:
        """End the engine process. Running requests get EngineDead. Idempotent."""
        if self._is_closing:
            return
        self._is_closing = True
        if self.process.is_alive:
            self._send_now(encoder.encode(Shutdown()))
        # An engine that still starts does not listen; one that has failed or is given up is not waited for.
        await asyncio.to_thread(self.process.close, STOP_S if self.is_ready else 0.0)
        for task in (self._reader, self._watcher):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._fail_everything(EngineDead("the server is shutting down"))
        self._socket.close(0)
        self._context.term()

    def _check_alive(self) -> None:
        if self._death is not None:
            raise self._death

    async def _send(self, message: ToEngine) -> None:
        """Hand one message over; waits while the engine is starting. Raises what the engine died of, also meanwhile."""
        data = encoder.encode(message)
        self._check_alive()
        while not self._send_now(data):
            await asyncio.sleep(_RETRY_SEND_S)
            self._check_alive()

    def _send_now(self, data: bytes) -> bool:
        """Hand ``data`` to the socket without waiting: nobody may be listening. False if it was not taken."""
        sent = self._socket.send(data, zmq.NOBLOCK)
        assert isinstance(sent, asyncio.Future)
        assert sent.done(), "a send without waiting is done when it returns"
        return sent.exception() is None

    async def _call(self, message: LoadAdapter | UnloadAdapter | PinAdapter | ListAdapters) -> list[AdapterInfo]:
        future: asyncio.Future[list[AdapterInfo]] = asyncio.get_running_loop().create_future()
        self._calls[message.call_id] = future
        try:
            await self._send(message)
            return await future
        finally:
            self._calls.pop(message.call_id, None)

    async def _watch(self) -> None:
        """End an engine that is stuck: what it was asked is answered with the reason by whoever reads its socket."""
        while self.process.is_alive:
            await asyncio.sleep(_WATCH_S)
            if self.process.trouble is not None:  # ending takes a moment, and stacks are written meanwhile
                await asyncio.to_thread(self.process.end_if_stuck)

    async def _read(self) -> None:
        while True:
            if not await self._socket.poll(_WATCH_S * 1000):
                if not self.process.is_alive and not await self._socket.poll(0):
                    self._fail_everything(self.process.death())
                    return
                continue
            message = from_engine_decoder.decode(await self._socket.recv())
            if isinstance(message, Outputs):
                for output in message.outputs:
                    queue = self._queues.get(output.request_id)
                    if queue is not None:
                        queue.put_nowait(output)
                if message.stats is not None:
                    self._stats = message.stats
            elif isinstance(message, Answer):
                self._answer(message)
            elif isinstance(message, Ready):
                self._ready.set_result(message)
            elif isinstance(message, Failed):
                self._fail_everything(error_from_name(message.error_type, message.error))
                return

    def _answer(self, answer: Answer) -> None:
        future = self._calls.get(answer.call_id)
        if future is None or future.done():
            return
        if answer.error_type is None:
            future.set_result(answer.adapters)
        else:
            future.set_exception(error_from_name(answer.error_type, answer.error, answer.reasons))

    def _fail_everything(self, error: EvenFlowError) -> None:
        self._death = error
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # retrieved: nobody may be waiting
        for queue in self._queues.values():
            queue.put_nowait(error)
        for future in self._calls.values():
            if not future.done():
                future.set_exception(error)
