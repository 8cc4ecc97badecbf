"""A server that answers as it is told to: the model's name says how. Real sockets, so that a cut stream is one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator

PROMPT_TOKENS, OUTPUT_TOKENS = 5, 3
TOKEN_S = 0.02


def _event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def _text(word: str, finish: str | None = None) -> bytes:
    return _event(choices=[{"index": 0, "text": word, "finish_reason": finish}])


class Misbehaving:
    """What it was sent, and how many requests it had at once."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.most_at_once = 0
        self.num_answered = 0
        self._at_once = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
                body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
                counts = body.get("model") != "slow"  # whose answers last longer than a test
                self._at_once += counts
                self.most_at_once = max(self.most_at_once, self._at_once)
                goes_on, last = False, b""
                try:
                    goes_on, last = await self._answer(head[0], headers, body, writer)
                finally:
                    self._at_once -= counts  # before the client can know that this answer is complete
                writer.write(last)
                await writer.drain()
                self.num_answered += bool(body)
                if not goes_on:
                    break
        writer.close()

    async def _answer(self, line: str, headers: dict[str, str], body: dict, writer: asyncio.StreamWriter) -> tuple[bool, bytes]:
        """Write all but the last bytes; whether the connection goes on, and those bytes."""
        if line.startswith("GET /v1/models"):
            return True, _whole(200, json.dumps({"data": [{"id": "good"}]}))
        self.bodies.append(body)
        self.headers.append(headers)
        how = body["model"]
        if how.isdigit():
            return True, _whole(int(how), '{"error": {"message": "not now"}}')
        if how == "plain":
            return True, _whole(200, '{"choices": []}')
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        async for part in _events(how):
            if part is None:
                return False, b""
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()
        return True, b"0\r\n\r\n"


async def _events(how: str) -> AsyncIterator[bytes | None]:
    """Chunks of the body; None closes the connection."""
    if how == "slow":
        await asyncio.sleep(30)
    yield b": a comment, as keep-alives are\n\n"
    for word in ("one", " two"):
        await asyncio.sleep(TOKEN_S)
        yield _text(word)
    if how == "cut":
        yield None
    if how == "short":
        return
    if how == "garbage":
        yield b"data: {half an obj\n\n"
        return
    if how == "number":
        yield b"data: 7\n\n"
        return
    if how == "fault":
        yield _event(error={"message": "out of memory"})
        return
    await asyncio.sleep(TOKEN_S)
    yield _text(" three", "length")
    if how != "silent":  # does not count tokens
        yield _event(choices=[], usage={"prompt_tokens": PROMPT_TOKENS, "completion_tokens": OUTPUT_TOKENS})
    yield b"data: [DONE]\n\n"


def _whole(status: int, text: str) -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    return (head + text).encode()


@contextlib.contextmanager
def misbehaving_server() -> Iterator[Misbehaving]:
    """The server on 127.0.0.1, in a thread with an event loop of its own."""
    found, loop, ready = Misbehaving(), asyncio.new_event_loop(), threading.Event()
    ended = asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(found.handle, "127.0.0.1", 0)
        found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await ended.wait()
        server.close()

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(serve())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
