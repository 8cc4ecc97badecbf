"""Where adapters come from beside one folder: a hub's cache on the disk, an operator's resolver, addresses of other storage.

A *name* is what a request asks for; an *address* is where the adapter lies: a folder, ``file://``, ``s3://`` or another
scheme that fsspec knows, or a hub's name. Whether a client may use a name is decided before any source is asked.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from evenflow.base.errors import AdapterError, AdapterNotFound, AdapterUnavailable, ConfigError
from evenflow.serving.server.access.downloads import DownloadCache

_HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]{0,95}(?:/[\w-][\w.-]{0,95})?)(?:@(?P<revision>[\w-][\w.-]{0,99}))?")
_RESOLVER_TIMEOUT_S = 10.0
_ABSENT_S = 10.0
_MOST_ABSENT = 10_000

log = logging.getLogger("evenflow.server")


class AdapterSource(Protocol):
    """Knows where adapters of some names lie."""

    async def find(self, name: str) -> str | None:
        """The address of the adapter called ``name``; None if this source has none. Raises AdapterError."""
        ...


class HubCache:
    """The cache folder of Hugging Face's hub client: models--ORG--NAME/snapshots/COMMIT, with refs/BRANCH naming commits.

    Nothing is fetched: what is not there is not found. A name is ``org/name``, and may end in ``@`` and a branch or commit.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def find(self, name: str) -> str | None:
        """See AdapterSource."""
        folder = self.folder_of(name)
        return None if folder is None else str(folder)

    def folder_of(self, name: str) -> Path | None:
        """The snapshot that ``name`` means now, if it holds an adapter."""
        match = _HUB_NAME.fullmatch(name)
        if match is None:
            return None
        model = self._folder / f"models--{match['name'].replace('/', '--')}"
        revision = match["revision"] or "main"
        try:
            commit = (model / "refs" / revision).read_text(encoding="ascii").strip()[:100]
        except (OSError, ValueError):
            commit = revision
        folder = model / "snapshots" / commit
        is_part = "/" not in commit and commit not in ("", ".", "..")
        return folder if is_part and (folder / "adapter_config.json").is_file() else None


class ResolverSource:
    """An operator's own class: ``resolve(name)``, or vLLM's ``resolve_lora(base_model_name, lora_name)``, async or not.

    It returns an address, or an object whose ``lora_path`` is one, or None. What it raises is that request's 503.
    """

    def __init__(self, resolver: Any, base_name: str) -> None:
        self._resolver = resolver
        self._base_name = base_name

    async def find(self, name: str) -> str | None:
        """See AdapterSource."""
        try:
            async with asyncio.timeout(_RESOLVER_TIMEOUT_S):
                if hasattr(self._resolver, "resolve"):
                    found = self._resolver.resolve(name)
                else:
                    found = self._resolver.resolve_lora(self._base_name, name)
                if inspect.isawaitable(found):
                    found = await found
        except AdapterError:
            raise
        except Exception as error:  # whatever the operator's code does must not reach others
            raise AdapterUnavailable(f"the adapter resolver failed: {type(error).__name__}: {error}") from None
        address = getattr(found, "lora_path", found)
        if address is None or isinstance(address, str | Path):
            return None if address is None else str(address)
        raise AdapterUnavailable(f"the adapter resolver returned a {type(address).__name__}; allowed: an address or None")


def make_resolver(spec: str) -> Any:
    """An instance of the class that ``MODULE:CLASS`` names. Raises ConfigError."""
    module, separator, name = spec.partition(":")
    try:
        resolver = getattr(importlib.import_module(module), name)() if separator else None
    except Exception as error:  # the operator's own code
        raise ConfigError(f"adapter_resolver is {spec!r}: {type(error).__name__}: {error}") from None
    if not hasattr(resolver, "resolve") and not hasattr(resolver, "resolve_lora"):
        raise ConfigError(f"adapter_resolver is {spec!r}; allowed: MODULE:CLASS with a method resolve(name) or resolve_lora")
    return resolver


class AdapterSources:
    """All sources of a server, in the order in which they are asked, and what their addresses mean."""

    def __init__(
        self,
        hub: HubCache | None,
        resolver: AdapterSource | None,
        downloads: DownloadCache,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._absent: OrderedDict[str, float] = OrderedDict()
        """Names that no source knew, and when that was."""
        self._address_by_name: dict[str, str] = {}
        """Where names were found that are about to be loaded."""
        self._sources = [source for source in (hub, resolver) if source is not None]
        self._downloads = downloads

    @property
    def is_empty(self) -> bool:
        """True if no name can be found in any of them."""
        return not self._sources

    async def knows(self, name: str) -> bool:
        """True if some source has the adapter; the first one's address is kept for ``take_address``.

        A name that is found nowhere is not looked for again for 10 seconds. Raises AdapterUnavailable.
        """
        absent_s = self._absent.get(name)
        if absent_s is not None and self._clock() - absent_s < _ABSENT_S:
            return False
        try:
            address = await self._find(name)
        except AdapterError as error:
            log.warning("the adapter %r could not be looked for: %s", name, error)
            raise AdapterUnavailable(
                f"the adapter {name!r} could not be looked for just now; the server's log says why"
            ) from None
        self._absent.pop(name, None)
        if address is not None:
            self._address_by_name[name] = address
            return True
        self._absent[name] = self._clock()
        while len(self._absent) > _MOST_ABSENT:
            self._absent.popitem(last=False)
        return False

    def take_address(self, name: str) -> str | None:
        """Where ``name`` was found last; None if it was not, or that was taken before."""
        return self._address_by_name.pop(name, None)

    async def _find(self, name: str) -> str | None:
        for source in self._sources:
            address = await source.find(name)
            if address is not None:
                return address
        return None

    def is_address(self, text: str) -> bool:
        """True if ``text`` is no plain path: it has a scheme, or the hub's cache has it."""
        return "://" in text or (self._hub is not None and self._hub.folder_of(text) is not None)

    async def folder_of(self, address: str) -> str:
        """The folder that ``address`` means, copied if need be. Raises AdapterNotFound, AdapterUnavailable, AdapterRejected."""
        scheme = urlsplit(address).scheme if "://" in address else ""
        if scheme == "file":
            return unquote(urlsplit(address).path)
        if scheme:
            return str(await self._downloads.folder_of(address))
        if self._hub is not None and not Path(address).exists() and (folder := self._hub.folder_of(address)) is not None:
            return str(folder)
        if "\0" in address:
            raise AdapterNotFound("the address holds a null character")
        return address


__all__ = ["AdapterSource", "AdapterSources", "HubCache", "ResolverSource", "make_resolver"]
