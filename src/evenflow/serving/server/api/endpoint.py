"""What every endpoint does the same way: who asks, what the body says, and how an answer is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from evenflow.access.identity import Client
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.http.body_parsing import BodyParser
from evenflow.serving.server.observing.request_record import record_of

T = TypeVar("T", bound=msgspec.Struct)

_encode = msgspec.json.Encoder().encode


def json_reply(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """``body`` as JSON."""
    return Response(_encode(body), status, dict(headers or {}), "application/json")


async def read_request(
    state: ServerState, request: Request, parser: BodyParser[T], data: bytes | None = None
) -> tuple[T, tuple[str, ...], Client | None]:
    """Who holds the key is settled before the body is looked at. Returns the body, its ignored fields and the key's holder.

    ``data``: the bytes of the body, if they have been read.
    """
    holder = state.directory.holder(request.headers)
    if holder is not None:
        record_of(request.scope).client = holder.name
    limit = state.config.max_body_bytes
    body, ignored = await parser.read(request, limit) if data is None else parser.parse(data)
    return body, ignored, holder


async def read_admin_request(state: ServerState, request: Request, parser: BodyParser[T]) -> T:
    """The body of a call that only administrators may make. Raises InvalidKey or NotAllowed before the body is read."""
    require_admin(state, request)
    body, _ = await parser.read(request, state.config.max_body_bytes)
    return body


def require_admin(state: ServerState, request: Request) -> None:
    """Raise InvalidKey or NotAllowed unless the caller may change, or see, what the server serves."""
    directory = state.directory
    directory.require_admin(directory.holder(request.headers))
