"""Adapters whose stored rows were lost or damaged, from when that is noticed until they have been made again or given up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from evenflow.serving.adapters.catalog import Catalog
from evenflow.serving.core.request import AdapterDigest

log = logging.getLogger("evenflow.engine")


class Repairs:
    """Which adapters are to be prepared again. The engine's thread.

    ``unload``: forgets a name for good. ``on_lost``: called with a digest when its rows turn out to be lost.
    """

    def __init__(self, catalog: Catalog, unload: Callable[[str], None], on_lost: Callable[[AdapterDigest], None]) -> None:
        self._catalog = catalog
        self._unload = unload
        self._on_lost = on_lost
        self._noted: list[AdapterDigest] = []
        self._in_repair: set[AdapterDigest] = set()

    def note(self, digest: AdapterDigest) -> None:
        """Its rows are lost or damaged. Nothing happens if that is known, or if nobody has the adapter any more."""
        if digest in self._in_repair or digest not in self._catalog:
            return
        self._in_repair.add(digest)
        self._catalog.discard_rows(digest)
        self._noted.append(digest)
        self._on_lost(digest)

    def is_needed(self, digest: AdapterDigest) -> bool:
        """True while its rows are being made again, or their file is found to be gone: loading them now would fail."""
        if digest not in self._in_repair and self._catalog.is_gone(digest):
            self.note(digest)
        return digest in self._in_repair

    def take(self) -> list[tuple[AdapterDigest, Path, Path | None]]:
        """What is to be prepared again since the last call: digest, folder, boundary of its links.

        Each is named once; tell ``end`` what came of it.
        """
        noted, self._noted = self._noted, []
        return [(d, self._catalog.path(d), self._catalog.boundary(d)) for d in noted if d in self._catalog]

    def end(self, digest: AdapterDigest, fault: str | None) -> None:
        """The rows are there again; or they are not, because of ``fault``: then every name of the adapter is forgotten."""
        self._in_repair.discard(digest)
        if fault is not None and digest in self._catalog:
            log.error("adapter %s is given up: %s", self._catalog.last_name(digest), fault)
            for name in self._catalog.names(digest):
                self._unload(name)


__all__ = ["Repairs"]
