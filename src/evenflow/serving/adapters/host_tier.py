"""The adapters that this process holds ready on the host: their row files are open, their rows read or being read ahead.

The bytes are in the system's page cache, not in this process: its own memory does not grow with the number of
adapters, and rows that nobody wants give way to whatever else the machine needs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from evenflow.serving.core.request import AdapterDigest


class OpenRows(Protocol):
    """What the tier needs of an adapter's rows."""

    @property
    def is_open(self) -> bool: ...
    @property
    def is_held(self) -> bool:
        """True while requests run with it."""
        ...

    @property
    def size_bytes(self) -> int: ...
    def read_ahead(self) -> None: ...
    def close(self) -> None: ...


class HostTier:
    """The ``max_open`` adapters wanted last, and those that requests run with.

    One thread, and nothing may be reading rows while it is told something.
    """

    def __init__(self, max_open: int = 512) -> None:
        self._max_open = max_open
        self._open: OrderedDict[AdapterDigest, OpenRows] = OrderedDict()
        self.size_bytes = 0
        """Of the rows held ready."""

    def want(self, digest: AdapterDigest, rows: OpenRows) -> None:
        """Rows will be needed soon: open them, and let the disk bring them while others are computed with."""
        if digest in self._open:
            self._open.move_to_end(digest)
            return
        rows.read_ahead()
        self._open[digest] = rows
        self.size_bytes += rows.size_bytes
        if len(self._open) > self._max_open:
            self.drop(next((old for old, held in self._open.items() if not held.is_held), digest))

    def drop(self, digest: AdapterDigest) -> None:
        """Give the file handle back. Nothing happens if the rows are not held."""
        rows = self._open.pop(digest, None)
        if rows is not None:
            self.size_bytes -= rows.size_bytes
            rows.close()

    def __contains__(self, digest: object) -> bool:
        return digest in self._open

    def __iter__(self) -> Iterator[AdapterDigest]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)


__all__ = ["HostTier", "OpenRows"]
