"""The console's page, its files, who looks at it, and the stream of steps. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from importlib import resources

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from evenflow.access.identity import Client
from evenflow.base.errors import EvenFlowError, InvalidKey
from evenflow.serving.client.messages import EngineStats
from evenflow.serving.server.api.endpoint import json_reply
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.console.collector import Collector
from evenflow.serving.server.http.event_stream import EventStream, event

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
          ".svg": "image/svg+xml"}  # fmt: skip
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Who(msgspec.Struct):
    """Who looks, and what this server lets them see."""

    needs_key: bool
    is_admin: bool
    client: str | None
    """None: everybody, on an open server."""
    models: list[str]
    weights: dict[str, float]
    """Weights of named clients; a client sees its own alone."""
    limits: dict[str, dict[str, int | None]]
    max_model_len: int
    keeps_accounts: bool
    version: str


class Ended(msgspec.Struct):
    """Why a stream of steps ended."""

    message: str
    wants_key: bool = False


class _Server:
    """What the collector reads of a server."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def engine_stats(self) -> EngineStats:
        return self._state.engine.stats

    def weights(self) -> Mapping[str, float]:
        return {name: client.weight for name, client in self._state.directory.clients.items()}

    @property
    def is_draining(self) -> bool:
        return self._state.is_draining


def add_console(app: FastAPI, state: ServerState, version: str) -> None:
    """Register the routes on ``app`` and let the collector watch ``state``."""
    collector = Collector(_Server(state), state.unix_time)
    state.watchers.append(collector)
    files = {file.name: file.read_bytes() for file in resources.files(__package__).joinpath("assets").iterdir()}

    async def root(request: Request) -> Response:
        """People get the console, programs what they always got: there is nothing here."""
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("console/", 307)
        raise HTTPException(404)

    async def to_page(request: Request) -> Response:
        return RedirectResponse("console/", 307)

    async def file(request: Request) -> Response:
        name = request.path_params["name"] or "index.html"
        if name not in files:
            return Response(status_code=404)
        return Response(files[name], headers={**_HEADERS, "content-type": _TYPES["." + name.rpartition(".")[2]]})

    async def who(request: Request) -> Response:
        viewer = _viewer(state, request)
        shown = list(state.directory.clients.values()) if viewer is None else [viewer]
        answer = Who(
            needs_key=state.directory.needs_key,
            is_admin=viewer is None,
            client=None if viewer is None else viewer.name,
            models=list(state.config.served_model_names),
            weights={client.name: client.weight for client in shown},
            limits={client.name: _limits(client) for client in shown},
            max_model_len=state.engine.info.max_model_len if state.engine.is_ready else 0,
            keeps_accounts=any(getattr(route, "path", "") == "/v1/usage" for route in app.routes),
            version=version,
        )
        return json_reply(answer, headers={"cache-control": "no-store"})

    async def steps(request: Request) -> Response:
        _viewer(state, request)

        async def events() -> AsyncGenerator[bytes, None]:
            looks = collector.look(lambda: _viewer(state, request))
            try:
                async for chunk in looks:
                    yield b"event: steps\ndata: " + chunk + b"\n\n"
                yield event(Ended("The server is shutting down."), "ended")
            except EvenFlowError as error:
                yield event(Ended(str(error), wants_key=True), "ended")
            finally:
                await looks.aclose()

        return EventStream(
            events(),
            dict,
            keepalive_s=state.config.keepalive_s,
            max_unread_bytes=state.config.max_unread_bytes,
            on_error=lambda error: event(Ended(str(error)), "ended"),
            on_unread=lambda: state.connections.closed("unread"),
        )

    app.add_route("/", root, include_in_schema=False)
    app.add_route("/console", to_page, include_in_schema=False)
    app.add_route("/console/{name:path}", file, include_in_schema=False)
    app.add_route("/v1/console/who", who, include_in_schema=False)
    app.add_route("/v1/console/steps", steps, include_in_schema=False)


def _viewer(state: ServerState, request: Request) -> Client | None:
    """Whoever holds an administrator's key sees everything (None), others themselves; all see all on a server without keys.

    Raises InvalidKey.
    """
    directory = state.directory
    holder = directory.holder(request.headers)
    if holder is None:
        if directory.client_by_hash:
            raise InvalidKey("the console of this server needs a key")
        return None
    return None if holder.is_admin else holder


def _limits(client: Client) -> dict[str, int | None]:
    names = ("requests_per_minute", "tokens_per_minute", "max_queued_requests")
    return {name: getattr(client, name) for name in names}
