"""Model names: the base model's, and the adapters' that may be asked for in ``model``.

The table follows the engine's: it is filled when the server starts and after each change, all of which go
through here. With an adapter folder, a sub-folder's name is loaded when it is first asked for, and forgotten when it
is asked for and its sub-folder is gone, or when another one of the folder needs its room.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evenflow.access.identity import Client
from evenflow.base.errors import (
    AdapterCacheFull,
    AdapterError,
    AdapterExists,
    AdapterNotFound,
    AdapterRejected,
    AdapterUnavailable,
    EvenFlowError,
    InvalidRequest,
)
from evenflow.serving.adapters.base_model_hint import is_same_model
from evenflow.serving.client.messages import AdapterInfo
from evenflow.serving.server.access.adapter_folder import AdapterFolder
from evenflow.serving.server.access.adapter_sources import AdapterSources
from evenflow.serving.server.access.adapter_texts import AdapterTexts
from evenflow.serving.server.access.asked import Asked
from evenflow.serving.server.access.combinations import PREFIX, Combinations, parse_combination
from evenflow.serving.server.access.name_rules import LONGEST_NAME, is_adapter_name, no_such_model
from evenflow.serving.server.interfaces import Engine

log = logging.getLogger("evenflow.server")

RETRY_BROKEN_S = 10.0
"""A folder that could not be loaded is not read again for so long, however often it is asked for."""

RETRY_UNAVAILABLE_S = 1.0
"""So long, if it was the host's fault."""

_JUST_ASKED_S = 1.0
"""Whoever was resolved so recently may be about to submit: their adapter is not taken from them."""


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter that can be asked for."""

    info: AdapterInfo
    created_s: int
    """Unix time at which this server saw it first."""


class ModelNames:
    """Owns the table of names. One event loop."""

    def __init__(
        self,
        engine: Engine,
        base_names: tuple[str, ...],
        adapter_dir: Path | None,
        clock: Callable[[], float],
        unix_time: Callable[[], float],
        model_names: tuple[str, ...] = (),
        sources: AdapterSources | None = None,
        texts: AdapterTexts | None = None,
    ) -> None:
        self.base_names = base_names
        self._model_names = model_names
        self._engine = engine
        self._dir = None if adapter_dir is None else AdapterFolder(adapter_dir, lambda: int(unix_time() * 1e9))
        self._sources = sources
        self._combinations = Combinations()
        self._combining = asyncio.Lock()
        self._texts = texts
        self._folders: dict[str, tuple[str, str]] = {}
        """Folder and boundary that each name was loaded from."""
        self._from_dir: dict[str, float] = {}
        """Names that were loaded on demand, and when each was last asked for: the longest ago first."""
        self._from_sources: set[str] = set()
        """Those of them that do not lie in the adapter folder."""
        self._clock = clock
        self._unix_time = unix_time
        self._adapters: dict[str, NamedAdapter] = {}
        self._unloading: set[asyncio.Task[None]] = set()
        self._loading: dict[str, asyncio.Task[list[AdapterInfo]]] = {}
        self._broken: dict[str, tuple[float, AdapterError]] = {}

    @property
    def adapters(self) -> dict[str, NamedAdapter]:
        """Adapters by name, as they can be asked for now."""
        return dict(self._adapters)

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    @property
    def passed_over(self) -> dict[str, str]:
        """What lies in the adapter folder and is not served, and why; as of the last listing."""
        return {} if self._dir is None else self._dir.passed_over

    async def available(self) -> dict[str, int]:
        """Names that would be loaded if they were asked for, and when they were first seen (Unix time, seconds)."""
        if self._dir is None:
            return {}
        names = await asyncio.to_thread(self._dir.names)
        return {name: seen_s for name, seen_s in names.items() if name not in self._adapters and name not in self.base_names}

    async def refresh(self) -> list[AdapterInfo]:
        """Read the engine's whole table; returns it, with what still drains."""
        infos = await self._engine.list_adapters()
        before, self._adapters = self._adapters, {}
        for info in infos:
            self._record(info, before.get(info.name))
        return infos

    async def resolve(self, model: str, client: Client) -> str | None:
        """The adapter that ``model`` means to this client; None: the base model. Loads it, if that is what it takes.

        Raises AdapterNotFound (no such name, or not this client's), before anything is loaded.
        """
        try:
            name = await self._find_anywhere(model, client)
        except AdapterNotFound:
            parts = parse_combination(model)
            if parts is None:
                raise
            return await self._combined(parts, client)
        if name is None:
            return None
        if name not in self._adapters:
            await self._load_once(name, client.name)
        if self._from_dir.pop(name, None) is not None:
            self._from_dir[name] = self._clock()
        if self._texts is not None and name in self._folders and name in self._adapters:
            await self._texts.prepare(name, self._adapters[name].info.digest, *self._folders[name])
        return name

    async def _combined(self, parts: list[tuple[str, float]], client: Client) -> str:
        """The engine's name of several adapters together, each of which the client may use."""
        names = []
        for name, weight in parts:
            adapter = await self.resolve(name, client) if name not in self.base_names and name else None
            if adapter is None:
                raise AdapterNotFound(no_such_model(name))
            names.append((adapter, weight))
        digests = [(self._adapters[name].info.digest, weight) for name, weight in names]
        async with self._combining:
            found = self._combinations.find(digests)
            if found is None:
                found = self._combinations.new_name()
                await self._engine.combine_adapters(found, names)
                for old in self._combinations.add(digests, found):
                    await self._unload_quietly(old)
        return found

    async def check(self, model: str, client: Client) -> None:
        """Raise AdapterNotFound unless ``model`` means something to this client; nothing is loaded."""
        try:
            await self._find_anywhere(model, client)
        except AdapterNotFound:
            parts = parse_combination(model)
            if parts is None:
                raise
            for name, _ in parts:
                await self._find_anywhere(name, client)

    def named(self, asked: Asked) -> str:
        """The model that a body names, in one way or the other. Raises InvalidRequest if it names two."""
        base = self.base_names[0]
        if not asked.adapter:
            return base if asked.model is None else asked.model
        if asked.model is not None and asked.model not in self.base_names and asked.model != asked.adapter:
            raise InvalidRequest(
                f"lora_path is {asked.adapter!r} and model is {asked.model!r}; allowed: the base model with it, or the same",
                "lora_path",
            )
        return asked.adapter

    def _find(self, model: str, client: Client) -> str | None:
        """The adapter that ``model`` means, loaded or not; None: the base model. Raises AdapterNotFound."""
        if model in self.base_names:
            return None
        base, _, rest = model.partition(":")  # "base:adapter", as some gateways write it
        for name in (model, rest) if base in self.base_names and rest else (model,):
            if client.may_use(name) and self._is_there(name):
                return name
        raise AdapterNotFound(no_such_model(model))

    async def _find_anywhere(self, model: str, client: Client) -> str | None:
        """As ``_find``, and in the sources too: they are asked for names that the client may use alone."""
        try:
            return self._find(model, client)
        except AdapterNotFound:
            if self._sources is None or self._sources.is_empty:
                raise
        base, _, rest = model.partition(":")
        for name in (model, rest) if base in self.base_names and rest else (model,):
            if is_adapter_name(name) and client.may_use(name) and await self._sources.knows(name):
                return name
        raise AdapterNotFound(no_such_model(model))

    async def load(self, name: str, path: str, *, replace: bool = False, must_read: bool = False) -> None:
        """Register the adapter at ``path``, a folder or an address (see ``adapter_sources``).

        Raises InvalidRequest (no name), AdapterExists, AdapterRejected.

        ``must_read``: look at what its files hold, even if their sizes and times say that it is known.
        """
        self.check_name(name)
        folder = path if self._sources is None else await self._sources.folder_of(path)
        for info in await self._engine.load_adapter(name, folder, replace, must_read=must_read):
            self._record(info)
        self._folders[name] = folder, ""
        self._broken.pop(name, None)
        self._from_dir.pop(name, None)
        self._from_sources.discard(name)

    def is_address(self, text: str) -> bool:
        """True if ``text`` says where an adapter lies without being a plain path."""
        return self._sources is not None and self._sources.is_address(text)

    async def unload(self, name: str, *, purge: bool = False) -> None:
        """Forget ``name``. Raises AdapterNotFound. (A folder of that name will load again when it is asked for.)

        ``purge``: delete its converted rows from the adapter cache too.
        """
        await self._engine.unload_adapter(name, purge)
        self.forget(name)

    async def pin(self, name: str, is_pinned: bool) -> AdapterInfo:
        """Keep the adapter in the arena, or let it be evicted again. Raises AdapterNotFound."""
        for info in await self._engine.pin_adapter(name, is_pinned):
            self._record(info)
        if name not in self._adapters:
            raise AdapterNotFound(f"the adapter {name!r} does not exist")
        return self._adapters[name].info

    def check_name(self, name: str) -> None:
        """Raise InvalidRequest unless an adapter may be called ``name``."""
        if name in self.base_names:
            raise AdapterExists(f"{name!r} is the name of the base model")
        if not is_adapter_name(name):
            raise InvalidRequest(
                f"{name[:80]!r} cannot name an adapter; allowed: 1 to {LONGEST_NAME} printable characters of any script, "
                "without a space at either end, a dot or slash at the beginning, a backslash, or .. between slashes",
                "lora_name",
            )

    def warning(self, info: AdapterInfo) -> str | None:
        """What to tell of an adapter that says it was trained for another model; None if there is nothing to tell."""
        if not info.base_model or not self._model_names:
            return None
        if is_same_model(info.base_model, (*self.base_names, *self._model_names)):
            return None
        return f"it was trained for {info.base_model!r}; the model that is served is {self._model_names[0]!r}"

    def forget(self, name: str) -> None:
        """The engine no longer knows ``name``."""
        self._adapters.pop(name, None)
        self._folders.pop(name, None)
        self._combinations.forget(name)
        self._from_dir.pop(name, None)
        self._from_sources.discard(name)

    def _is_there(self, name: str) -> bool:
        """True if ``name`` is loaded, or can be. One whose sub-folder has gone is unloaded: those who run with it finish."""
        if name in self._from_dir and name not in self._from_sources:
            assert self._dir is not None
            if not self._dir.has(name):
                log.warning("the adapter %r is unloaded: its folder is gone", name)
                self.forget(name)
                task = asyncio.create_task(self._unload_quietly(name))
                self._unloading.add(task)
                task.add_done_callback(self._unloading.discard)
        return name in self._adapters or (self._dir is not None and self._dir.find(name) is not None)

    async def _unload_quietly(self, name: str) -> None:
        with contextlib.suppress(EvenFlowError):
            await self._engine.unload_adapter(name)

    async def _load_once(self, name: str, client_id: str) -> None:
        """Load from the adapter folder for a client; whoever asks meanwhile waits for the same load."""
        failed_s, error = self._broken.get(name, (0.0, None))
        if error is not None and self._clock() - failed_s < RETRY_BROKEN_S:
            raise error
        task = self._loading.get(name)
        if task is None:
            folder = self._dir.find(name) if self._dir is not None else None
            address = None if self._sources is None else self._sources.take_address(name)
            if folder is not None and self._dir is not None:
                load = self._load_with_room(name, str(folder), str(self._dir.boundary(name)), client_id)
            elif address is not None:
                load = self._load_from_source(name, address, client_id)
            else:
                raise AdapterNotFound(no_such_model(name))
            task = asyncio.create_task(load)
            self._loading[name] = task
            task.add_done_callback(lambda done: self._loaded(name, done))
        try:
            for info in await asyncio.shield(task):  # one caller's going must not end the load for the others
                self._record(info)
            self._from_dir[name] = self._clock()
        except AdapterExists:
            await self.refresh()
        except AdapterCacheFull:  # those in the way may have ended by the next time
            raise
        except AdapterUnavailable:
            later = AdapterUnavailable(f"the adapter {name!r} could not be read just now; the server's log says why")
            self._broken[name] = (self._clock() - RETRY_BROKEN_S + RETRY_UNAVAILABLE_S, later)
            raise later from None
        except AdapterError as error:
            # Told without the path: the caller is a client.
            told: AdapterError = AdapterError(f"the adapter {name!r} could not be read; the server's log says why")
            if isinstance(error, AdapterRejected):
                told = AdapterRejected(repr(name), error.reasons)
            self._broken[name] = (self._clock(), told)
            raise told from None

    async def _load_from_source(self, name: str, address: str, client_id: str) -> list[AdapterInfo]:
        assert self._sources is not None
        folder = await self._sources.folder_of(address)
        infos = await self._load_with_room(name, folder, folder, client_id)
        self._from_sources.add(name)
        return infos

    async def _load_with_room(self, name: str, folder: str, boundary: str, client_id: str) -> list[AdapterInfo]:
        """Load. While there is no room, unload those of the adapter folder that nobody has asked for for longest.

        Raises AdapterCacheFull if all of them run, are pinned, or were asked for just now.
        """
        count = 1
        while True:
            try:
                infos = await self._engine.load_adapter(name, folder, boundary=boundary, client_id=client_id)
                self._folders[name] = folder, boundary
                return infos
            except AdapterCacheFull:
                idle = await self._idle_names()
                if not idle:
                    raise
                for victim in idle[:count]:
                    log.info("the adapter %r is unloaded: %r needs its room", victim, name)
                    self.forget(victim)
                    await self._unload_quietly(victim)
                count *= 2  # adapters differ in size, and each try reads the new one again

    async def _idle_names(self) -> list[str]:
        """Names of the adapter folder that may be unloaded now and found again later, the longest unused first."""
        idle = {info.name for info in await self._engine.list_adapters() if not info.in_flight and not info.is_pinned}
        latest_s = self._clock() - _JUST_ASKED_S
        return [name for name, asked_s in self._from_dir.items() if name in idle and asked_s <= latest_s]

    def _record(self, info: AdapterInfo, before: NamedAdapter | None = None) -> None:
        if info.state == "draining" or info.name.startswith(PREFIX):
            return
        before = before or self._adapters.get(info.name)
        is_same = before is not None and before.info.digest == info.digest
        if not is_same and (warning := self.warning(info)) is not None:
            log.warning("adapter %r: %s", info.name, warning)
        self._adapters[info.name] = NamedAdapter(info, before.created_s if is_same and before else int(self._unix_time()))

    def _loaded(self, name: str, task: asyncio.Task[list[AdapterInfo]]) -> None:
        self._loading.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, AdapterExists):
            log.warning("loading the adapter %r failed: %s", name, error)
