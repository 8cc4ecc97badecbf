"""One request to an OpenAI-compatible server, streamed or whole, timed at the client.

Reading a stream costs a client more than generating it costs a small model, so only those who chat stream; a client
that wants long answers by the dozen takes each as a whole, as a batch job does.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from evenflow.base.errors import EvenFlowError

_DATA = b"data:"
_SHOWN = 300
"""Characters of a wrong answer that a message repeats."""

CUT, NOT_JSON, NO_STREAM, TIMEOUT, CONNECTION, ERROR_EVENT = (
    "cut stream", "not JSON", "no stream", "timeout", "connection", "error in stream",
)  # fmt: skip
"""What RequestFailed calls failures that are no HTTP status."""


@dataclass(slots=True)
class StreamedReply:
    """What one request brought. Times are of time.monotonic()."""

    sent_s: float
    first_token_s: float | None = None
    finished_s: float | None = None
    text: str = ""
    prompt_tokens: int = 0
    """As the server counts them; 0: it has not said."""
    completion_tokens: int = 0
    """As the server counts them; 0: it has not said."""
    token_times_s: list[float] = field(default_factory=list)
    """When each event with text came: one token each, or several where the server sends several at once."""


class RequestFailed(EvenFlowError):
    """The server did not answer a request as it should. ``kind`` is the HTTP status as text, or a word of this module."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


async def stream(
    http: httpx.AsyncClient,
    path: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    reply: StreamedReply,
    on_token: Callable[[], None] = lambda: None,
) -> None:
    """POST ``body`` as a stream and fill ``reply`` as tokens arrive; ``on_token`` is called for each event with text.

    ``reply`` is the caller's, so that it still holds the times if this call is cancelled. A field of ``body`` that is
    None is left out. Raises RequestFailed.
    """
    wanted = {"stream": True, "stream_options": {"include_usage": True}, **body}
    content = json.dumps({key: value for key, value in wanted.items() if value is not None})
    sent = {"content-type": "application/json", "accept-encoding": "identity", **headers}
    try:
        async with http.stream("POST", path, content=content, headers=sent) as response:
            await _read(response, path, on_token, reply)
    except httpx.HTTPError as error:
        raise _failed(path, error, has_begun=bool(reply.token_times_s)) from None
    reply.finished_s = time.monotonic()


async def whole(
    http: httpx.AsyncClient, path: str, body: Mapping[str, Any], headers: Mapping[str, str], reply: StreamedReply
) -> None:
    """POST ``body`` and fill ``reply`` from the whole answer of an EvenFlow server. Raises RequestFailed.

    The first token's time is the server's own word for it (``usage.evenflow``): queue and prefill after sending.
    """
    try:
        response = await http.post(path, json=body, headers=headers)
    except httpx.HTTPError as error:
        raise _failed(path, error, has_begun=False) from None
    if response.status_code != 200:
        raise RequestFailed(f"POST {path} answered {response.status_code}: {response.text[:_SHOWN]}", str(response.status_code))
    answer = response.json()
    usage = answer["usage"]
    reply.text = answer["choices"][0]["text"]
    reply.prompt_tokens, reply.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    reply.first_token_s = reply.sent_s + usage["evenflow"]["queue_s"] + usage["evenflow"]["prefill_s"]
    reply.finished_s = time.monotonic()


def _failed(path: str, error: httpx.HTTPError, has_begun: bool) -> RequestFailed:
    if isinstance(error, httpx.TimeoutException):
        kind = TIMEOUT
    elif isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        kind = CUT if has_begun else CONNECTION
    else:
        kind = CONNECTION
    return RequestFailed(f"POST {path} failed: {type(error).__name__} {error}", kind)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield whole lines of the body as bytes (httpx's own decodes each line, which costs more than the server's work)."""
    rest = b""
    async for part in response.aiter_raw():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line := line.rstrip(b"\r"):
                yield line
    if rest:
        yield rest


async def _read(response: httpx.Response, path: str, on_token: Callable[[], None], reply: StreamedReply) -> None:
    if response.status_code != 200:
        detail = (await response.aread()).decode(errors="replace")[:_SHOWN]
        raise RequestFailed(f"POST {path} answered {response.status_code}: {detail}", str(response.status_code))
    has_events = is_complete = False
    first = b""
    async for line in _lines(response):
        if not line.startswith(_DATA):
            first = first or line
            continue
        has_events = True
        data = line[len(_DATA) :].strip()
        if data == b"[DONE]":
            is_complete = True
            continue
        if _take(_event(data, path), path, on_token, reply):
            is_complete = True
    if not has_events:
        shown = first[:_SHOWN].decode(errors="replace")
        raise RequestFailed(f"POST {path} was answered without a stream of events: {shown!r}", NO_STREAM)
    if not is_complete:
        raise RequestFailed(f"the stream of POST {path} ended in the middle", CUT)


def _event(data: bytes, path: str) -> Mapping[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        shown = data[:_SHOWN].decode(errors="replace")
        raise RequestFailed(f"an event of POST {path} is no JSON object: {shown!r}", NOT_JSON)
    return event


def _take(event: Mapping[str, Any], path: str, on_token: Callable[[], None], reply: StreamedReply) -> bool:
    """Add one event to ``reply``; whether it says that the answer is complete."""
    if event.get("error"):
        raise RequestFailed(f"POST {path} ended with an error: {event['error']}", ERROR_EVENT)
    choices = event.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise RequestFailed(f"an event of POST {path} has no list of choices: {choices!r}"[:_SHOWN], NOT_JSON)
    is_complete = False
    for choice in choices:
        text = choice["text"] if "text" in choice else _delta_text(choice.get("delta") or {})
        if text:
            now_s = time.monotonic()
            if reply.first_token_s is None:
                reply.first_token_s = now_s
            reply.token_times_s.append(now_s)
            reply.text += text
            on_token()
        is_complete = is_complete or bool(choice.get("finish_reason"))
    usage = event.get("usage")
    if usage:
        reply.prompt_tokens = usage.get("prompt_tokens") or 0
        reply.completion_tokens = usage.get("completion_tokens") or 0
    return is_complete


def _delta_text(delta: Mapping[str, Any]) -> str:
    """What a chat's event adds, reasoning included."""
    return delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
