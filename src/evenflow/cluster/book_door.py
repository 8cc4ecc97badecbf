"""The Unix socket through which the engine process beside it reaches the deployment's shared counters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from evenflow.fairness.books.exchange import Answer, Batch
from evenflow.fairness.policies.book_socket import LONGEST_LINE, decode_exchange, encode_answer

log = logging.getLogger("evenflow.cluster")


class BookDoor:
    """``exchange`` passes a batch on; while it raises ConnectionError the engine finds its counters away."""

    def __init__(self, exchange: Callable[[str, Batch], Awaitable[Answer]]) -> None:
        self._exchange = exchange
        self._listener: asyncio.Server | None = None

    async def open(self, path: Path) -> None:
        """Listen at ``path``, in a folder that nobody else may enter."""
        self._listener = await asyncio.start_unix_server(self._serve, str(path), limit=LONGEST_LINE)

    def close(self) -> None:
        """Listen no more. Idempotent."""
        if self._listener is not None:
            self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                server, batch = decode_exchange(line)
                writer.write(encode_answer(await self._exchange(server, batch)))
                await writer.drain()
        except ConnectionError:
            pass  # the book is away, or the engine: a closed connection says so
        except (ValueError, KeyError, TypeError) as error:
            log.error("the engine's exchange could not be read: %s", error)
        finally:
            writer.close()
