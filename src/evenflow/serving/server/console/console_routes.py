"""The routes of the console: its page and assets, the stream of steps, and what clients are allowed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from importlib import resources

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from evenflow.access.identity import Client
from evenflow.base.errors import EvenFlowError, InvalidKey, NotAllowed
from evenflow.base.version import __version__
from evenflow.serving.server.api.endpoint import json_reply
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.console.collector import Collector
from evenflow.serving.server.http.event_stream import EventStream, event

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
ASSETS = {"console.js": "text/javascript", "console.css": "text/css"}
MOST_CLIENTS = 500
"""Clients of the file of clients that one answer lists."""


class Hello(msgspec.Struct):
    """The first event of a stream."""

    client: str | None
    """Whose row is sent; None: all are."""
    version: str
    model: str
    policy: str
    started: int
    needs_key: bool
    has_usage: bool


class Refused(msgspec.Struct):
    """The last event of a stream that ends before its page is closed."""

    status: int
    message: str


class Allowed(msgspec.Struct):
    """One client's weight and limits; None: no limit."""

    name: str
    weight: float
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_queued_requests: int | None
    adapters: tuple[str, ...] | None


class AllowedList(msgspec.Struct):
    """Clients of the clients file, by name."""

    clients: list[Allowed]
    total: int


def add_console_routes(app: FastAPI, state: ServerState) -> Collector:
    """Register the console on ``app``."""
    collector = Collector(state.engine, state.metrics)

    async def root(request: Request) -> Response:
        """Browsers are led to the console; whoever does not ask for HTML gets what the API says of unknown paths."""
        if "text/html" in request.headers.get("accept", ""):
            return Response(status_code=307, headers={"location": "console/"})
        raise HTTPException(404)

    async def page(request: Request) -> Response:
        return _asset("console.html", "text/html")

    async def to_page(request: Request) -> Response:
        return Response(status_code=307, headers={"location": "console/"})

    async def part(request: Request) -> Response:
        name = request.path_params["name"]
        return _asset(name, ASSETS[name]) if name in ASSETS else Response(status_code=404)

    async def events(request: Request) -> Response:
        """Steps as server-sent events, for the key that asks."""
        client = viewer(state, request.headers)
        has_usage = any(getattr(route, "path", "") == "/v1/usage" for route in app.routes)
        hello = Hello(
            client,
            __version__,
            state.config.served_model_names[0],
            state.engine.stats.policy,
            state.started_s,
            state.directory.needs_key,
            has_usage,
        )
        seen = state.directory

        def check() -> None:
            nonlocal seen
            if state.directory is not seen:
                if viewer(state, request.headers) != client:
                    raise NotAllowed("what this key may see has changed; sign in again")
                seen = state.directory

        async def stream() -> AsyncGenerator[bytes, None]:
            yield event(hello, "hello")
            async for chunk in collector.watch(client, check):
                yield chunk

        return EventStream(
            stream(),
            dict,
            keepalive_s=state.config.keepalive_s,
            max_unread_bytes=max(state.config.max_unread_bytes, 8 << 20),
            on_error=_refusal,
            on_unread=lambda: None,
        )

    async def clients(request: Request) -> Response:
        """Weights and limits, of all clients for administrators and else of the key's own."""
        own = viewer(state, request.headers)
        known = state.directory.clients
        names = sorted(known) if own is None else [own] if own in known else []
        return json_reply(AllowedList([_allowed(known[name]) for name in names[:MOST_CLIENTS]], len(names)))

    for path, answer in (
        ("/", root),
        ("/console", to_page),
        ("/console/", page),
        ("/console/events", events),
        ("/console/clients", clients),
        ("/console/{name}", part),
    ):
        app.add_route(path, answer, methods=["GET"], include_in_schema=False)
    return collector


def viewer(state: ServerState, headers: Mapping[str, str]) -> str | None:
    """Whose figures the caller may see: one client's, or (None) everybody's. Raises InvalidKey."""
    directory = state.directory
    holder = directory.holder(headers)
    try:
        directory.require_admin(holder)
    except (InvalidKey, NotAllowed):
        if holder is None:
            raise InvalidKey("the console needs an API key; an administrator's shows all, a client's its own") from None
        return holder.name
    return None


def _refusal(error: Exception) -> bytes:
    status = 401 if isinstance(error, InvalidKey) else 403 if isinstance(error, NotAllowed) else 500
    message = str(error) if isinstance(error, EvenFlowError) else "the server failed; its log says why"
    return event(Refused(status, message), "refused")


def _allowed(client: Client) -> Allowed:
    return Allowed(
        client.name,
        client.weight,
        client.requests_per_minute,
        client.tokens_per_minute,
        client.max_queued_requests,
        client.adapters,
    )


def _asset(name: str, media_type: str) -> Response:
    content = resources.files(__package__).joinpath("assets", name).read_bytes()
    headers = {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(content, media_type=media_type, headers=headers)
