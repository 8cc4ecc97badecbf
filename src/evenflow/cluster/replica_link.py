"""The far side of a replica: what one front holds of it. When the connection ends, everything under way gets ReplicaLost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec

from evenflow.base.errors import EvenFlowError, ReplicaLost
from evenflow.cluster.frames import Report, from_replica_decoder, read_frame, write_frame
from evenflow.serving.client.conversation import Conversation
from evenflow.serving.client.messages import Failed, SetWeights, ToEngine

CONNECT_TIMEOUT_S = 5.0


class ReplicaLink:
    """One connection. Made by ``connect``; ``on_report`` and ``on_lost`` are called in the event loop."""

    def __init__(
        self,
        name: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_report: Callable[[ReplicaLink, Report | None], None],
        on_lost: Callable[[ReplicaLink], None],
    ) -> None:
        self.name = name
        self.talk = Conversation(self._send, self._send_now)
        self.is_draining = False
        self._writer = writer
        self._on_report = on_report
        self._on_lost = on_lost
        self._task = asyncio.create_task(self._read(reader))

    @classmethod
    async def connect(
        cls,
        name: str,
        host: str,
        port: int,
        on_report: Callable[[ReplicaLink, Report | None], None],
        on_lost: Callable[[ReplicaLink], None],
    ) -> ReplicaLink:
        """Open the connection and wait until the engine is warm. Raises ReplicaLost, or what the engine failed of."""
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port, limit=1 << 22), CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            raise ReplicaLost(f"replica {name} cannot be reached: {error}") from None
        link = cls(name, reader, writer, on_report, on_lost)
        try:
            await asyncio.wait_for(asyncio.shield(link.talk.ready), CONNECT_TIMEOUT_S)
        except TimeoutError:
            await link.close()
            raise ReplicaLost(f"replica {name} does not answer") from None
        return link

    async def set_weights(self, message: SetWeights) -> None:
        """Replace own weights and tiers."""
        await self._send(message)

    async def close(self) -> None:
        """End the connection, and with it what runs there for this front. Idempotent."""
        self._writer.close()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _send(self, message: ToEngine) -> None:
        if self.talk.death is not None:
            raise self.talk.death
        write_frame(self._writer, message)
        with contextlib.suppress(OSError):  # the reader tells of it
            await self._writer.drain()

    def _send_now(self, message: ToEngine) -> None:
        write_frame(self._writer, message)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        error: EvenFlowError = ReplicaLost(f"the connection to replica {self.name} has ended")
        try:
            while (data := await read_frame(reader)) is not None:
                message = from_replica_decoder.decode(data)
                if isinstance(message, Report):
                    self.is_draining = self.is_draining or message.is_draining
                    self._on_report(self, message)
                    continue
                if isinstance(message, Failed):
                    error = ReplicaLost(f"the engine of replica {self.name} has ended: {message.error}")
                    return
                before = self.talk.stats
                self.talk.take(message)
                if self.talk.stats is not before:
                    self._on_report(self, None)
        except msgspec.DecodeError as fault:
            error = ReplicaLost(f"replica {self.name} speaks another version: {fault}")
        finally:
            self.talk.end(error)
            self._writer.close()
            self._on_lost(self)
