"""The clients file beside a server that runs for months: read at the start, and again whenever it has changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from evenflow.access.identity import Directory, read_directory
from evenflow.base.errors import ConfigError

log = logging.getLogger("evenflow.integrations")

EVERY_S = 5.0
"""How often the file's time of change is looked at."""


class WatchedClients:
    """``directory`` is what the file says; without a ``path``, an open server. Raises ConfigError if it cannot be read."""

    def __init__(self, path: Path | None, clock: Callable[[], float], every_s: float = EVERY_S) -> None:
        self._path = path
        self._clock = clock
        self._every_s = every_s
        self._looked_s = clock()
        self._stamp = self._read_stamp()
        self.directory: Directory = self._read()

    def poll(self) -> bool:
        """Look at the file if it is time to. True if ``directory`` is another one now.

        A file that cannot be read leaves everything as it was; the reason is logged once per change.
        """
        now_s = self._clock()
        if self._path is None or now_s - self._looked_s < self._every_s:
            return False
        self._looked_s = now_s
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.directory = self._read()
        except ConfigError as error:
            log.error("the clients stay as they were: %s", error)
            return False
        return True

    def name(self, headers: Mapping[str, str], named: tuple[str, str] | None) -> str:
        """Who pays for a request: the holder of its key, or where no key is needed whoever it says it is.

        ``headers`` by lower-case name; ``named``: the header or field that names the client, and its value.
        Raises InvalidKey or InvalidRequest.
        """
        return self.directory.client(self.directory.holder(headers), {}, named).name

    def _read(self) -> Directory:
        """Raises ConfigError, also for a promise of the file's that nobody would keep in front of another server."""
        directory = read_directory(self._path)
        for client in directory.clients.values():
            if client.adapters is not None:
                raise ConfigError(
                    f"{self._path}: clients.{client.name}.adapters is not enforced in front of another server: take it out"
                )
            limits = (client.requests_per_minute, client.tokens_per_minute, client.max_queued_requests, client.budget)
            if limits != (None, None, None, None):
                log.warning("%s: the limits of client %s have no effect in front of another server", self._path, client.name)
        return directory

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)
