"""One request to an OpenAI-compatible server, streamed or whole, timed at the client.

Reading a stream costs a client more than generating it costs a small model, so only those who chat stream; a client
that wants long answers by the dozen takes each as a whole, as a batch job does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from evenflow.base.errors import EvenFlowError

_DATA = b"data: "


@dataclass(slots=True)
class StreamedReply:
    """What one request brought. Times are of time.monotonic()."""

    sent_s: float
    first_token_s: float | None = None
    finished_s: float | None = None
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class RequestFailed(EvenFlowError):
    """The server answered a demo request with an error."""


async def stream(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], client: str, on_token: Callable[[], None], reply: StreamedReply
) -> None:
    """POST ``body`` as a stream for ``client`` and fill ``reply`` as tokens arrive; ``on_token`` is called for each.

    ``reply`` is the caller's, so that it still holds the times if this call is cancelled. Raises RequestFailed.
    """
    content = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
    headers = {"content-type": "application/json", "x-evenflow-client": client}
    try:
        async with http.stream("POST", path, content=content, headers=headers) as response:
            await _read(response, path, on_token, reply)
    except httpx.HTTPError as error:
        raise RequestFailed(f"POST {path} failed: {type(error).__name__} {error}") from None
    reply.finished_s = time.monotonic()


async def whole(http: httpx.AsyncClient, path: str, body: dict[str, Any], client: str, reply: StreamedReply) -> None:
    """POST ``body`` for ``client`` and fill ``reply`` from the whole answer. Raises RequestFailed.

    The first token's time is the server's own word for it (``usage.evenflow``): queue and prefill after sending.
    """
    try:
        response = await http.post(path, json=body, headers={"x-evenflow-client": client})
    except httpx.HTTPError as error:
        raise RequestFailed(f"POST {path} failed: {type(error).__name__} {error}") from None
    if response.status_code != 200:
        raise RequestFailed(f"POST {path} answered {response.status_code}: {response.text[:300]}")
    answer = response.json()
    usage = answer["usage"]
    reply.text = answer["choices"][0]["text"]
    reply.prompt_tokens, reply.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    reply.first_token_s = reply.sent_s + usage["evenflow"]["queue_s"] + usage["evenflow"]["prefill_s"]
    reply.finished_s = time.monotonic()


async def _lines(response: httpx.Response) -> Any:
    """Yield whole lines of the body as bytes (httpx's own decodes each line, which costs more than the server's work)."""
    rest = b""
    async for part in response.aiter_raw():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line:
                yield line


async def _read(response: httpx.Response, path: str, on_token: Callable[[], None], reply: StreamedReply) -> None:
    if response.status_code != 200:
        detail = (await response.aread()).decode(errors="replace")[:300]
        raise RequestFailed(f"POST {path} answered {response.status_code}: {detail}")
    async for line in _lines(response):
        if not line.startswith(_DATA) or line == b"data: [DONE]":
            continue
        event = json.loads(line[len(_DATA) :])
        if event.get("error"):
            raise RequestFailed(f"POST {path} ended with an error: {event['error']}")
        for choice in event["choices"]:
            text = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            if text:
                if reply.first_token_s is None:
                    reply.first_token_s = time.monotonic()
                reply.text += text
                on_token()
        usage = event.get("usage")
        if usage:
            reply.prompt_tokens, reply.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
