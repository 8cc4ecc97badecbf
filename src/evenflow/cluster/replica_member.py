"""One replica as a member of its deployment: it has the adapters of the table before it takes requests, and keeps them.

It speaks to the directory twice a second. A newer table is carried out on its engine; what cannot be loaded here is logged and
left out, and requests for it are told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Protocol

from evenflow.base.errors import AdapterExists, AdapterNotFound, EvenFlowError
from evenflow.cluster.adapter_table import AdapterEntry, AdapterTable, change_between
from evenflow.cluster.directory import Member, ReplicaWord
from evenflow.serving.server.interfaces import Engine

log = logging.getLogger("evenflow.cluster")

SPEAK_S = 0.5


class ReplicaDirectory(Protocol):
    """The directory, as a replica reaches it. Raises ConnectionError while it is away."""

    async def replica_speaks(self, member: Member | None, table_version: int) -> ReplicaWord:
        """See Directory.replica_speaks. Raises ConfigError for another version of EvenFlow."""
        ...

    async def give(self, table: AdapterTable) -> None:
        """See Directory.give."""
        ...


class ReplicaMember:
    """``join`` once the engine is warm, ``leave`` before it ends. One event loop."""

    def __init__(
        self, engine: Engine, directory: ReplicaDirectory, member: Member, initial: Mapping[str, AdapterEntry] | None = None
    ) -> None:
        """``initial``: adapters of a deployment in which none was ever changed."""
        self._initial = dict(initial or {})
        self._engine = engine
        self._directory = directory
        self._member = member
        self._table = AdapterTable()
        self._speaker: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Carry out the table, then be found.

        Raises ConfigError for another version, ConnectionError without a directory, and whatever an initial adapter is
        refused for.
        """
        word = await self._directory.replica_speaks(None, 0)
        if word.table is None and self._initial:
            for name, entry in self._initial.items():
                with contextlib.suppress(AdapterExists):
                    await self._engine.load_adapter(name, entry.path, boundary=entry.boundary)
            self._table = AdapterTable(1, self._initial)
            await self._directory.give(self._table)
            word = await self._directory.replica_speaks(None, 1)
        while word.table is not None:
            await self._carry_out(word.table)
            word = await self._directory.replica_speaks(None, self._table.version)
        await self._directory.replica_speaks(self._member, self._table.version)
        self._speaker = asyncio.create_task(self._speak())

    async def leave(self) -> None:
        """Be found no more. Idempotent."""
        if self._speaker is not None:
            self._speaker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._speaker
            self._speaker = None
        with contextlib.suppress(ConnectionError, EvenFlowError):
            await self._directory.replica_speaks(None, self._table.version)

    async def _speak(self) -> None:
        while True:
            await asyncio.sleep(SPEAK_S)
            with contextlib.suppress(ConnectionError):
                try:
                    word = await self._directory.replica_speaks(self._member, self._table.version)
                    if word.wants_table:
                        await self._directory.give(self._table)
                    if word.table is not None:
                        await self._carry_out(word.table)
                except EvenFlowError as error:
                    log.error("%s", error)

    async def _carry_out(self, table: AdapterTable) -> None:
        change = change_between(self._table, table)
        for name in change.unload:
            with contextlib.suppress(AdapterNotFound):
                await self._engine.unload_adapter(name)
        wanted = {**change.load, **change.replace}
        for name, entry in sorted(wanted.items(), key=lambda item: bool(item[1].parts)):  # sums after what they are made of
            try:
                is_new = name in change.load
                if entry.parts:
                    await self._engine.combine_adapters(name, entry.parts)
                    continue
                await self._engine.load_adapter(name, entry.path, not is_new, must_read=not is_new, boundary=entry.boundary)
            except AdapterExists:
                continue  # a front was quicker
            except EvenFlowError as error:
                log.error("the adapter %r cannot be served here: %s", name, error)
        for name, is_pinned in change.pin.items():
            with contextlib.suppress(EvenFlowError):
                await self._engine.pin_adapter(name, is_pinned)
        self._table = table
