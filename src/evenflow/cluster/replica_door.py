"""The near side of a replica: one engine, offered to any number of fronts over TCP.

Each connection is one front. What it sends is passed on to the engine, and what its requests gain goes back: everything
that one step produced in one message. A connection that ends aborts what came over it. Nothing here knows Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Protocol

import msgspec

from evenflow.base.errors import EngineDead, EvenFlowError
from evenflow.cluster.frames import Report, ToReplica, read_frame, to_replica_decoder, write_frame
from evenflow.fairness.books.cost import WeightedTokens
from evenflow.serving.client.conversation import ABORTED, Sink
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
    RequestOutput,
    SetWeights,
    Submit,
    SubmitAll,
    UnloadAdapter,
    Usage,
)
from evenflow.serving.server.interfaces import Engine

log = logging.getLogger("evenflow.cluster")

REPORT_S = 0.25
EXPECTED_OUTPUT_TOKENS = 64
"""Of requests that may become longer: routers and the autoscaler do not know lengths."""
DRAIN_POLL_S = 0.05
MOST_ABORTED = 16_384


def expected_service(submit: Submit) -> float:
    """Weighted tokens that a request will probably take."""
    most = submit.sampling.max_tokens
    output = EXPECTED_OUTPUT_TOKENS if most is None else min(most, EXPECTED_OUTPUT_TOKENS)
    return max(1.0, WeightedTokens()(len(submit.prompt_token_ids), output))


class RelayedEngine(Engine, Protocol):
    """An engine whose outputs can be passed on as they come: ``EngineClient``."""

    async def relay(self, message: Submit | SubmitAll, sinks: Mapping[str, Sink]) -> None:
        """See Conversation.relay."""
        ...

    def forget(self, request_id: str, *, is_running: bool) -> None:
        """See Conversation.forget."""
        ...


class _Front:
    """One connection: its requests, and outputs that are about to be sent."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.requests: dict[str, _Request] = {}
        self.pending: list[RequestOutput] = []

    @property
    def load(self) -> float:
        """Weighted tokens of service under way for it."""
        return sum(request.service for request in self.requests.values())

    def gained(self, output: RequestOutput) -> None:
        """Send it with all that comes in this turn of the loop."""
        if not self.pending:
            asyncio.get_running_loop().call_soon(self.flush)
        self.pending.append(output)

    def flush(self) -> None:
        """Send what is pending."""
        outputs, self.pending = self.pending, []
        write_frame(self.writer, Outputs(outputs))


class _Request:
    """One request under way: the sink of its outputs."""

    def __init__(self, door: ReplicaDoor, front: _Front, submit: Submit) -> None:
        self._door = door
        self._front = front
        self.request_id = submit.request_id
        self.service = expected_service(submit)
        self.waiting_tokens = len(submit.prompt_token_ids)
        """Of its prompt, until the first output."""

    def put_nowait(self, item: RequestOutput | EvenFlowError, /) -> None:
        """Pass it on."""
        self.waiting_tokens = 0
        if isinstance(item, EngineDead):  # the front is told once, of all: then it knows what may be sent elsewhere
            self._door.ended(self._front, self.request_id, is_running=False)
            return
        if isinstance(item, EvenFlowError):
            item = RequestOutput(self.request_id, error_type=type(item).__name__, error=str(item))
        self._front.gained(item)
        if item.finish_reason is not None or item.error_type is not None:
            self._door.ended(self._front, self.request_id, is_running=False)


class ReplicaDoor:
    """Owns the listener. ``open`` once the engine is warm; ``drain``, then ``close``."""

    def __init__(self, engine: RelayedEngine) -> None:
        self._engine = engine
        self._fronts: set[_Front] = set()
        self._listener: asyncio.Server | None = None
        self._reporter: asyncio.Task[None] | None = None
        self._is_draining = False
        self._aborted: dict[str, _Front] = {}
        """Who had sent requests that the engine has still to tell of."""
        engine.hear_aborted(self._hear_aborted)

    @property
    def num_streams(self) -> int:
        """Requests under way, of all fronts."""
        return sum(len(front.requests) for front in self._fronts)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of requests that wait for their first output: what an autoscaler levels."""
        return sum(request.waiting_tokens for front in self._fronts for request in front.requests.values())

    async def open(self, host: str, port: int = 0) -> tuple[str, int]:
        """Listen; returns the address."""
        self._listener = await asyncio.start_server(self._serve, host, port)
        self._reporter = asyncio.create_task(self._report())
        address = self._listener.sockets[0].getsockname()
        return address[0], address[1]

    async def drain(self, timeout_s: float) -> bool:
        """Tell the fronts to send nothing more, and wait until what runs has ended. False if it did not in time."""
        self._is_draining = True
        for front in self._fronts:
            write_frame(front.writer, Report(is_draining=True))
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self.num_streams and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(DRAIN_POLL_S)
        return not self.num_streams

    async def close(self) -> None:
        """End all connections, and with them what still runs. Idempotent."""
        if self._reporter is not None:
            self._reporter.cancel()
        if self._listener is not None:
            self._listener.close()
        for front in list(self._fronts):
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(front.writer.drain(), 1.0)
            front.writer.close()
        while self._fronts:
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        front = _Front(writer)
        self._fronts.add(front)
        answering: set[asyncio.Task[None]] = set()
        dying = asyncio.create_task(self._tell_death(front))
        try:
            ready = await self._engine.wait_until_ready()
            if not self._engine.is_alive:
                return  # it was warm once
            write_frame(writer, ready)
            if self._is_draining:
                write_frame(writer, Report(is_draining=True))
            while (data := await read_frame(reader)) is not None:
                message = to_replica_decoder.decode(data)
                if isinstance(message, Submit | SubmitAll):
                    await self._start(front, message)
                elif isinstance(message, Abort):
                    for request_id in message.request_ids:
                        self.ended(front, request_id, is_running=True)
                else:
                    task = asyncio.create_task(self._answer(front, message))
                    answering.add(task)
                    task.add_done_callback(answering.discard)
        except (msgspec.DecodeError, EvenFlowError) as error:
            log.warning("a connection is closed: %s", error)
        finally:
            for request_id in list(front.requests):
                self.ended(front, request_id, is_running=True)
            ending = [dying, *answering]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            self._fronts.discard(front)
            writer.close()

    async def _tell_death(self, front: _Front) -> None:
        error = await self._engine.wait_until_dead()
        if error is not None:
            write_frame(front.writer, Failed(type(error).__name__, str(error)))

    def ended(self, front: _Front, request_id: str, *, is_running: bool) -> None:
        """A request has had its last output, or nobody wants any more of it."""
        if front.requests.pop(request_id, None) is not None:
            if is_running:
                self._aborted[request_id] = front
                if len(self._aborted) > MOST_ABORTED:
                    del self._aborted[next(iter(self._aborted))]
            self._engine.forget(request_id, is_running=is_running)

    def _hear_aborted(self, request_id: str, usage: Usage) -> None:
        """The engine has stopped working on a request: the front that had sent it is told what it took."""
        front = self._aborted.pop(request_id, None)
        if front is not None:
            front.gained(RequestOutput(request_id, finish_reason=ABORTED, usage=usage))

    async def _start(self, front: _Front, message: Submit | SubmitAll) -> None:
        submits = [message] if isinstance(message, Submit) else message.submits()
        requests = {submit.request_id: _Request(self, front, submit) for submit in submits}
        front.requests |= requests
        try:
            await self._engine.relay(message, requests)
        except EvenFlowError as error:
            for request in requests.values():
                request.put_nowait(error)

    async def _answer(self, front: _Front, message: ToReplica) -> None:
        engine, adapters = self._engine, list[AdapterInfo]()
        try:
            if isinstance(message, SetWeights):
                await engine.set_weights(message.weight_by_client, message.tier_by_client, message.weight_by_tier)
                return
            if isinstance(message, LoadAdapter) and message.parts:
                adapters = await engine.combine_adapters(message.name, message.parts)
            elif isinstance(message, LoadAdapter):
                adapters = await engine.load_adapter(
                    message.name, message.path, message.replace, must_read=message.must_read, boundary=message.boundary
                )
            elif isinstance(message, UnloadAdapter):
                adapters = await engine.unload_adapter(message.name, message.purge)
            elif isinstance(message, PinAdapter):
                adapters = await engine.pin_adapter(message.name, message.is_pinned)
            elif isinstance(message, ListAdapters):
                adapters = await engine.list_adapters()
            answer = Answer(getattr(message, "call_id"), adapters)  # noqa: B009  # all of these have one
        except EvenFlowError as error:
            reasons = list(getattr(error, "reasons", ()))
            answer = Answer(getattr(message, "call_id", 0), [], type(error).__name__, str(error), reasons)
        write_frame(front.writer, answer)

    async def _report(self) -> None:
        told: EngineStats | None = None
        while True:
            await asyncio.sleep(REPORT_S)
            stats = self._engine.stats
            loads = {front: front.load for front in self._fronts}
            for front, load in loads.items():
                foreign = sum(loads.values()) - load
                write_frame(front.writer, Report(foreign, self._is_draining))
                if stats is not told:
                    write_frame(front.writer, Outputs([], stats))
            told = stats


__all__ = ["ReplicaDoor", "expected_service"]
