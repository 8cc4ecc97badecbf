"""Shared counters behind a Unix socket: how an engine process reaches a book that some other process answers for.

One JSON line for each exchange, one back. Whoever listens passes it on to the book, wherever that is; so the engine needs no
client of the cluster it runs in. A socket that is away or silent counts as a store that is away.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import socket
from dataclasses import asdict
from pathlib import Path

from evenflow.fairness.books.exchange import Answer, Batch

log = logging.getLogger("evenflow.fairness")

SCHEME = "book://"
LONGEST_LINE = 1 << 27


def encode_exchange(server: str, batch: Batch) -> bytes:
    """One line."""
    return json.dumps({"server": server, **asdict(batch)}).encode() + b"\n"


def decode_exchange(line: bytes) -> tuple[str, Batch]:
    """The server and its batch. Raises ValueError, KeyError or TypeError for a line that is none."""
    fields = json.loads(line)
    return fields.pop("server"), Batch(**fields)


def encode_answer(answer: Answer) -> bytes:
    """One line."""
    return json.dumps(asdict(answer)).encode() + b"\n"


class BookSocket:
    """One connection, made when it is first needed. Not for several threads at once."""

    def __init__(self, path: Path, *, server_id: str, timeout_s: float = 1.0) -> None:
        self._path = path
        self._server_id = server_id
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._is_away = False
        self.tells_changes = True
        self.num_failures = 0

    def exchange(self, batch: Batch) -> Answer | None:
        """Send one line and read one. Never raises: whatever goes wrong, the store is away until it answers again."""
        try:
            answer = self._ask(encode_exchange(self._server_id, batch))
        except (OSError, ValueError, TypeError) as error:
            self.close()
            self.num_failures += 1
            if not self._is_away:
                log.warning("the shared counters are away (%s); going on with local ones", error or type(error).__name__)
            self._is_away = True
            return None
        if self._is_away:
            log.warning("the shared counters are back, after %d exchanges that failed since the start", self.num_failures)
        self._is_away = False
        return answer

    def close(self) -> None:
        """Close the connection; the next exchange makes another one."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket = None

    def _ask(self, line: bytes) -> Answer:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(self._timeout_s)
            self._socket.connect(str(self._path))
        self._socket.sendall(line)
        received = bytearray()
        while not received.endswith(b"\n"):
            part = self._socket.recv(1 << 16)
            if not part or len(received) > LONGEST_LINE:
                raise ConnectionError("the connection has ended")
            received += part
        fields = json.loads(received)
        answer = Answer(**fields)
        if not all(map(math.isfinite, (answer.virtual_time, *answer.counters.values()))):
            raise ValueError("a shared counter is not a finite number")
        return answer
