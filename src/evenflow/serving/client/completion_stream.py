"""The outputs of one request as they come from the engine process, and its end: by itself, or because nobody wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from evenflow.base.errors import EvenFlowError
from evenflow.serving.client.messages import RequestOutput


class CompletionStream:
    """An async iterator over one request's outputs; ``aclose`` before the last one aborts it, also if nothing was read yet.

    ``start`` sends the request, once, however many streams share it. ``forget`` is told when the stream has ended, with
    True if the engine still works on the request.
    """

    def __init__(self, start: Callable[[], Awaitable[None]], forget: Callable[[bool], None]) -> None:
        self.queue: asyncio.Queue[RequestOutput | EvenFlowError] = asyncio.Queue()
        self._start = start
        self._forget = forget
        self._is_started = False
        self._has_ended = False

    def __aiter__(self) -> CompletionStream:
        return self

    async def __anext__(self) -> RequestOutput:
        """The next output. Raises what the engine died of; ended streams stay ended."""
        if self._has_ended:
            raise StopAsyncIteration
        try:
            if not self._is_started:
                self._is_started = True
                await self._start()
            output = await self.queue.get()
        except BaseException:
            await self.aclose()
            raise
        if isinstance(output, EvenFlowError):
            self._end(False)
            raise output
        if output.finish_reason is not None or output.error_type is not None:
            self._end(False)
        return output

    async def aclose(self) -> None:
        """End now. Idempotent."""
        if not self._has_ended:
            self._end(True)

    def _end(self, is_running: bool) -> None:
        self._has_ended = True
        self._forget(is_running)


__all__ = ["CompletionStream"]
