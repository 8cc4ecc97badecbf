"""Fairness in front of an engine that one cannot change: an ASGI middleware for a reverse proxy, or a dispatcher by itself.

    app = FairGateway(proxy, limit=16, policy="vtc", clients=Path("clients.toml"))

``limit`` is how many requests the backend is given at once: as many as it runs side by side, so that its own queue,
which is first come, first served, stays empty and all waiting happens here, in the policy's order. What runs is never
stopped: the bound is VTC's, with M the tokens of ``limit`` requests. A request is charged its prompt when it starts,
each chunk of the answer as an output token when it passes by, and what the answer's ``usage`` says, if it says so, at
its end.

Knows HTTP and the shape of OpenAI's bodies, no backend and no framework.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evenflow.access.client_headers import CLIENT_HEADERS
from evenflow.base.errors import ConfigError, InvalidKey, InvalidRequest, Rejected
from evenflow.fairness.books.live_shares import LiveShares
from evenflow.integrations.clients import WatchedClients
from evenflow.integrations.dispatcher import FairDispatcher
from evenflow.integrations.http import (
    ASGIApp,
    BodyTooLarge,
    CallerGone,
    Message,
    Receive,
    Scope,
    Send,
    answer_error,
    headers_of,
    read_body,
    replay,
    with_body,
)
from evenflow.integrations.usage import AnswerTokens, max_output_tokens, prompt_tokens

log = logging.getLogger("evenflow.integrations")

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/generate", "/api/chat", "/api/generate")
"""What takes a place of the backend's: OpenAI's and Anthropic's calls, TGI's and Ollama's. All else passes at once."""

MOST_BODY_BYTES = 64 << 20


class FairGateway:
    """The middleware. ``limit``: the most requests that the application behind it is given at once."""

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        policy: str = "vtc",
        clients: Path | None = None,
        *,
        client_headers: tuple[str, ...] = CLIENT_HEADERS,
        paths: tuple[str, ...] = PATHS,
        most_waiting: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigError or RegistryError."""
        self._app = app
        self._headers = client_headers
        self._paths = paths
        self._clients = WatchedClients(clients, clock)
        directory = self._clients.directory
        shares = LiveShares(dict(directory.weight_by_client), dict(directory.tier_by_client), dict(directory.weight_by_tier))
        self.dispatcher = FairDispatcher(limit, policy, shares=shares, most_waiting=most_waiting, clock=clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request wait for its turn if it takes a place of the backend's."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        if self._clients.poll():
            self._take_shares()
        try:
            body = await read_body(receive, MOST_BODY_BYTES)
            content = _object(body)
            client = self._client(headers_of(scope), content)
        except InvalidKey as error:
            await answer_error(send, 401, str(error), "authentication_error", "invalid_api_key")
        except InvalidRequest as error:
            await answer_error(send, 400, str(error), "invalid_request_error", "invalid_client")
        except BodyTooLarge:
            text = f"the body is larger than {MOST_BODY_BYTES} bytes"
            await answer_error(send, 413, text, "invalid_request_error", "body_too_large")
        except CallerGone:
            pass
        else:
            caller = _Caller(replay(body, receive))
            try:
                await self._serve(client, content, with_body(scope, body), caller, send)
            finally:
                caller.close()

    async def _serve(self, client: str, content: dict[str, Any], scope: Scope, caller: _Caller, send: Send) -> None:
        model = content.get("model")
        adapter = model if isinstance(model, str) else None
        entering = self.dispatcher.enter(client, prompt_tokens(content), max_output_tokens(content), adapter)
        waiting, gone = asyncio.ensure_future(entering), asyncio.ensure_future(caller.until_gone())
        try:
            await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not waiting.done():
                waiting.cancel()
        try:
            ticket = await waiting
        except asyncio.CancelledError:
            return  # nobody is there to be answered
        except Rejected as error:
            await answer_error(
                send, 429, str(error), "rate_limit_error", "rate_limit_exceeded", retry_after_s=error.retry_after_s
            )
            return
        tokens = AnswerTokens()

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.body" and (count := tokens.read(message.get("body", b""))):
                self.dispatcher.produced(ticket, count)
            await send(message)

        try:
            await self._app(scope, caller.receive, send_on)
            if count := tokens.finish():
                self.dispatcher.produced(ticket, count)
            ticket.is_complete = True
        finally:
            self.dispatcher.leave(ticket)

    def _client(self, headers: dict[str, str], content: dict[str, Any]) -> str:
        named = next(((name, headers[name]) for name in self._headers if headers.get(name)), None)
        user = content.get("user")
        if named is None and isinstance(user, str) and user:
            named = ("user", user)
        return self._clients.name(headers, named)

    def _take_shares(self) -> None:
        directory = self._clients.directory
        try:
            self.dispatcher.shares.replace(directory.weight_by_client, directory.tier_by_client, directory.weight_by_tier)
        except ConfigError as error:
            log.error("weights and tiers stay as they were: %s", error)
        else:
            self.dispatcher.shares_changed()


class _Caller:
    """What comes from the caller, looked at while the request waits and given to the application afterwards."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._pending: asyncio.Task[Message] | None = None

    async def until_gone(self) -> None:
        """Return when the caller has gone."""
        while True:
            message = await self._next()
            self._kept.append(message)
            if message["type"] == "http.disconnect":
                return

    async def receive(self) -> Message:
        """For the application."""
        return self._kept.pop(0) if self._kept else await self._next()

    def close(self) -> None:
        """Nobody listens any more."""
        if self._pending is not None:
            self._pending.cancel()

    async def _next(self) -> Message:
        # A receive that is cancelled half way would lose what it was about to return, so it runs on by itself.
        if self._pending is None:
            self._pending = asyncio.ensure_future(_awaited(self._receive))
        message = await asyncio.shield(self._pending)
        self._pending = None
        return message


async def _awaited(receive: Receive) -> Message:
    return await receive()


def _object(body: bytes) -> dict[str, Any]:
    """The body as an object; an empty one for anything else, which the backend will refuse."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
