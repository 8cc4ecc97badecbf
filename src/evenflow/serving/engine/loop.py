"""The engine process's loop: messages in, steps, messages out. One message per step each way.

All compute happens on the thread that runs this loop; adapter files are read and checked in processes of their own,
which loader threads beside it wait for, so that neither a slow disk nor a hostile folder delays anybody's next token.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import zmq

from evenflow.base.errors import AdapterCacheFull, AdapterError, AdapterRejected, AdapterUnavailable, EvenFlowError
from evenflow.base.heartbeat import Heart
from evenflow.base.progress import Tell, tell_nobody
from evenflow.serving.adapters.catalog import PreparedAdapter
from evenflow.serving.client.codec import encoder, to_engine_decoder
from evenflow.serving.client.messages import (
    Abort,
    Answer,
    EngineStats,
    FromEngine,
    ListAdapters,
    LoadAdapter,
    Outputs,
    PinAdapter,
    RequestOutput,
    SetWeights,
    Shutdown,
    Submit,
    SubmitAll,
    UnloadAdapter,
)
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.engine.build import build_engine
from evenflow.serving.engine.loading_line import LoadingLine

log = logging.getLogger("evenflow.engine")

_IDLE_POLL_MS = 250
_LOADING_POLL_MS = 2


class EngineLoop:
    """Owns the socket and the engine until the parent says Shutdown or is gone."""

    def __init__(
        self,
        config: EngineConfig,
        socket: zmq.Socket,
        is_orphan: Callable[[], bool],
        folder: Path | None = None,
        heart: Heart | None = None,
        tell: Tell = tell_nobody,
    ) -> None:
        self._socket = socket
        self._heart = heart
        self._is_orphan = is_orphan
        self._stats_interval_s = config.stats_interval_s
        self._engine = build_engine(config, folder, tell)
        self._loader = LoadingLine()
        self._loads: list[tuple[LoadAdapter, Future[PreparedAdapter]]] = []
        self._repairs: list[tuple[AdapterDigest, Future[PreparedAdapter]]] = []
        self._parked: list[Submit] = []
        """Requests whose adapter's rows are being made again: another server deleted them while nobody here ran with them."""
        self._next_stats_s = 0.0
        self._is_stopping = False

    def run(self) -> None:
        """Serve until told to stop."""
        try:
            self._serve()
        finally:
            self._loader.close()
            self._engine.close()

    def _serve(self) -> None:
        self._send(self._engine.ready())
        if self._heart is not None:
            self._heart.is_ready()
        is_quiet = False
        while not self._is_stopping:
            if self._heart is not None:
                self._heart.advance()
            outputs = self._receive()
            self._publish_loads(outputs)
            has_work = self._engine.has_work
            if has_work:
                outputs += self._engine.step()
                self._repair()
            # After the last step one more snapshot says that nothing runs any more; then silence.
            is_due = time.monotonic() >= self._next_stats_s
            if outputs or (is_due and (has_work or not is_quiet)):
                self._send(Outputs(outputs, self._snapshot() if is_due else None))
                is_quiet = is_due and not has_work

    def _snapshot(self) -> EngineStats:
        self._next_stats_s = time.monotonic() + self._stats_interval_s
        return self._engine.stats()

    def _receive(self) -> list[RequestOutput]:
        """Handle every message that is there; wait for one only if there is nothing else to do."""
        outputs: list[RequestOutput] = []
        if not self._engine.has_work or self._engine.is_stalled:
            timeout_ms = _LOADING_POLL_MS if self._loads or self._repairs or self._engine.has_work else _IDLE_POLL_MS
            if not self._socket.poll(timeout_ms) and self._is_orphan():
                self._end_as_orphan()
        while not self._is_stopping:
            try:
                message = to_engine_decoder.decode(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
            if isinstance(message, Submit):
                self._submit(message, outputs)
            elif isinstance(message, SubmitAll):
                for submit in message.submits():
                    self._submit(submit, outputs)
            elif isinstance(message, Abort):
                self._parked = [parked for parked in self._parked if parked.request_id not in message.request_ids]
                outputs += self._engine.abort(message.request_ids)
            elif isinstance(message, SetWeights):
                self._engine.set_weights(message.weight_by_client, message.tier_by_client, message.weight_by_tier)
            elif isinstance(message, Shutdown):
                self._is_stopping = True
            elif isinstance(message, LoadAdapter):
                self._loads.append((message, self._begin_load(message)))
            else:
                self._answer(message, self._admin(message))
        return outputs

    def _admin(self, message: UnloadAdapter | PinAdapter | ListAdapters) -> Callable[[], None]:
        if isinstance(message, UnloadAdapter):
            return lambda: self._engine.unload_adapter(message.name, purge=message.purge)
        if isinstance(message, PinAdapter):
            return lambda: self._engine.pin_adapter(message.name, message.is_pinned)
        return lambda: None

    def _submit(self, message: Submit, outputs: list[RequestOutput]) -> None:
        if self._engine.waits_for_rows(message):
            self._parked.append(message)
            self._repair()
        elif (refusal := self._engine.submit(message)) is not None:
            outputs.append(refusal)

    def _publish_loads(self, outputs: list[RequestOutput]) -> None:
        if self._loads or self._repairs:
            self._loader.advance()
        waiting: set[str] = set()
        for message, future in self._loads[:]:
            if future.done() and message.name not in waiting:  # of one name, the last to be asked for is the last to come
                self._loads.remove((message, future))
                self._answer(message, partial(self._register, message, future))
            waiting.add(message.name)
        for digest, repair in self._repairs[:]:
            if repair.done():
                self._repairs.remove((digest, repair))
                self._end_repair(digest, repair, outputs)

    def _end_repair(self, digest: AdapterDigest, repair: Future[PreparedAdapter], outputs: list[RequestOutput]) -> None:
        error = repair.exception()
        if error is None and repair.result().record.digest != digest:
            error = AdapterError("its folder holds other weights now")
        is_passing = isinstance(error, AdapterCacheFull | AdapterUnavailable)  # the next request tries again
        self._engine.repairs.end(digest, None if error is None or is_passing else str(error))
        parked, self._parked = self._parked, []
        for message in parked:
            if is_passing and self._engine.catalog.digest_by_name.get(message.adapter or "") == digest:
                outputs.append(RequestOutput(message.request_id, error_type=type(error).__name__, error=str(error)))
            else:
                self._submit(message, outputs)

    def _begin_load(self, message: LoadAdapter) -> Future[PreparedAdapter]:
        if not message.parts:
            return self._loader.submit(partial(self._prepare, message), message.client_id)
        try:  # what the names mean is known to this thread alone
            return self._loader.submit(self._engine.catalog.combiner(message.parts), message.client_id)
        except EvenFlowError as error:
            failed: Future[PreparedAdapter] = Future()
            failed.set_exception(error)
            return failed

    def _prepare(self, message: LoadAdapter) -> PreparedAdapter:
        boundary = Path(message.boundary) if message.boundary else None
        # Adapters of a folder displace each other's rows: they are made again when they are asked for.
        return self._engine.catalog.prepare(
            message.path, boundary=boundary, must_read=message.must_read, displaces=boundary is not None
        )

    def _repair(self) -> None:
        """Have damaged rows made again from their folders, beside the steps."""
        for digest, path, boundary in self._engine.repairs.take():
            prepare = partial(self._engine.catalog.prepare, path, boundary=boundary, displaces=True)
            self._repairs.append((digest, self._loader.submit(prepare)))

    def _register(self, message: LoadAdapter, future: Future[PreparedAdapter]) -> None:
        self._engine.register_adapter(message.name, future.result(), replace=message.replace)

    def _answer(self, message: LoadAdapter | UnloadAdapter | PinAdapter | ListAdapters, action: Callable[[], None]) -> None:
        try:
            action()
            names = None if isinstance(message, ListAdapters) else {message.name}
            answer = Answer(message.call_id, self._engine.adapters(names))
        except EvenFlowError as error:
            reasons = list(error.reasons) if isinstance(error, AdapterRejected) else []
            answer = Answer(message.call_id, [], type(error).__name__, str(error), reasons)
        except Exception as error:  # whatever one adapter does, the others are served
            log.exception("a call about adapters failed")
            answer = Answer(message.call_id, [], "AdapterError", f"the adapter cannot be used ({type(error).__name__})")
        self._next_stats_s = 0.0
        self._send(answer)

    def _send(self, message: FromEngine) -> None:
        data = encoder.encode(message)
        while not self._is_stopping:
            try:
                self._socket.send(data, zmq.NOBLOCK)
                return
            except zmq.Again:  # nobody at the other end: not yet connected, or gone
                if self._is_orphan():
                    self._end_as_orphan()
                elif not self._socket.poll(_IDLE_POLL_MS, zmq.POLLOUT):
                    continue

    def _end_as_orphan(self) -> None:
        log.error("the process that started this engine is gone; the engine ends")
        self._is_stopping = True
