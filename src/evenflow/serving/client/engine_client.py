"""The asyncio end of an engine process: what the HTTP server holds.

One task reads the socket and hands each output to its request's queue. Nothing here knows HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import zmq
import zmq.asyncio

from evenflow.base.errors import EngineDead, EvenFlowError
from evenflow.serving.client.codec import encoder, from_engine_decoder
from evenflow.serving.client.conversation import Conversation, Sink
from evenflow.serving.client.messages import (
    AdapterInfo,
    EngineStats,
    Failed,
    Ready,
    RequestOutput,
    SetWeights,
    Shutdown,
    Submit,
    SubmitAll,
    ToEngine,
    Usage,
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
        self._talk = Conversation(self._send, self._send_unless_closing)
        self._is_closing = False
        self._reader = asyncio.create_task(self._read())
        self._watcher = asyncio.create_task(self._watch())

    @property
    def is_alive(self) -> bool:
        """True until the engine process has ended."""
        return self._talk.death is None

    @property
    def trouble(self) -> str | None:
        """Why nothing can be served, or probably soon nothing: the engine is dead, or shows no life. None: all is well."""
        return str(self._talk.death) if self._talk.death is not None else self.process.trouble

    @property
    def is_ready(self) -> bool:
        """True once the engine is warm."""
        return self._talk.is_ready

    @property
    def info(self) -> Ready:
        """What the engine said when it was warm; only after ``wait_until_ready``."""
        return self._talk.ready.result()

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot."""
        return self._talk.stats

    async def wait_until_ready(self) -> Ready:
        """Wait until the engine is warm. Raises what it died of."""
        return await asyncio.shield(self._talk.ready)

    async def wait_until_dead(self) -> EvenFlowError | None:
        """Wait until the engine has ended; the reason, or None after ``close``."""
        await asyncio.wait([self._reader])
        return None if self._is_closing else self._talk.death

    def submit(self, submit: Submit) -> AsyncIterator[RequestOutput]:
        """Run one request; yields until an output has ``finish_reason`` or ``error_type``.

        Closing or cancelling the iterator before that aborts the request in the engine.
        """
        return self._talk.streams(submit)[0]

    def submit_all(self, group: SubmitAll) -> list[AsyncIterator[RequestOutput]]:
        """Run several completions of one prompt; one iterator each, as ``submit`` gives. Sent when the first is read."""
        return list(self._talk.streams(group))

    def hear_aborted(self, listener: Callable[[str, Usage], object]) -> None:
        """From now on, tell ``listener`` what each aborted request took; there is one listener."""
        self._talk.on_aborted = listener

    async def relay(self, message: Submit | SubmitAll, sinks: Mapping[str, Sink]) -> None:
        """As ``submit`` and ``submit_all`` for whoever passes outputs on: no stream, no task. See Conversation."""
        await self._talk.relay(message, sinks)

    def forget(self, request_id: str, *, is_running: bool) -> None:
        """End a relayed request's outputs; ``is_running``: abort it."""
        self._talk.forget(request_id, is_running=is_running)

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
        return await self._talk.load_adapter(name, path, replace, must_read=must_read, boundary=boundary, client_id=client_id)

    async def combine_adapters(self, name: str, parts: Sequence[tuple[str, float]]) -> list[AdapterInfo]:
        """Register the weighted sum of registered adapters. Raises AdapterRejected, AdapterNotFound or AdapterExists."""
        return await self._talk.combine_adapters(name, parts)

    async def unload_adapter(self, name: str, purge: bool = False) -> list[AdapterInfo]:
        """Forget ``name``; memory is freed when its last request ends. Raises AdapterNotFound."""
        return await self._talk.unload_adapter(name, purge)

    async def pin_adapter(self, name: str, is_pinned: bool) -> list[AdapterInfo]:
        """Keep the adapter in the arena, or let it be evicted again. Raises AdapterNotFound."""
        return await self._talk.pin_adapter(name, is_pinned)

    async def list_adapters(self) -> list[AdapterInfo]:
        """Every registered adapter, and those that still drain."""
        return await self._talk.list_adapters()

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
        self._talk.end(EngineDead("the server is shutting down"))
        self._socket.close(0)
        self._context.term()

    def _check_alive(self) -> None:
        if self._talk.death is not None:
            raise self._talk.death

    def _send_unless_closing(self, message: ToEngine) -> None:
        if not self._is_closing:
            self._send_now(encoder.encode(message))

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
                    self._talk.end(self.process.death())
                    return
                continue
            message = from_engine_decoder.decode(await self._socket.recv())
            self._talk.take(message)
            if isinstance(message, Failed):
                return
