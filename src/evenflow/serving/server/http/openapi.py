"""The OpenAPI document, written from the types that bodies are decoded into and answers encoded from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from evenflow.serving.server.http.error_answers import ErrorResponse

_TEMPLATE = "#/components/schemas/{name}"
_REASONS = {
    400: "Malformed, of the wrong type, out of range or too long; `error.param` names the field.",
    401: "No API key, or one that nobody has.",
    403: "The key does not open this.",
    404: "No such model or adapter.",
    408: "The headers or the body did not come in time.",
    413: "The body is larger than is read, or holds more values.",
    415: "The body is not application/json, or packed in another way than gzip or deflate.",
    429: "The client is over its own limit; Retry-After says when to come back.",
    503: "The server is full, warming up or shutting down; Retry-After says when to come back.",
}


def documented(
    request: type[msgspec.Struct] | None,
    response: type[msgspec.Struct] | str,
    refusals: Sequence[int] = (),
    event: type[msgspec.Struct] | None = None,
    failure: type[msgspec.Struct] | None = None,
) -> dict[str, Any]:
    """Arguments of a FastAPI route whose bodies are msgspec's.

    ``response``: a type, or a plain text's media type. ``event``: what a stream holds. ``failure``: a body of
    status 400 beside ErrorResponse.
    """
    content: dict[str, Any]
    if isinstance(response, str):
        content = {response: {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": _reference(response)}}
    if event is not None:
        content["text/event-stream"] = {"schema": {"type": "string", "description": f"Events, each a {event.__name__}."}}
    responses: dict[int | str, Any] = {200: {"description": "Success", "content": content}}
    for status in refusals:
        schema: dict[str, Any] = _reference(ErrorResponse)
        if failure is not None and status == 400:
            schema = {"anyOf": [_reference(failure), schema]}
        responses[status] = {"description": _REASONS[status], "content": {"application/json": {"schema": schema}}}
    arguments: dict[str, Any] = {"response_class": Response, "response_model": None, "responses": responses}
    if request is not None:
        arguments["openapi_extra"] = {
            "requestBody": {"required": True, "content": {"application/json": {"schema": _reference(request)}}}
        }
    return arguments


def install_openapi(app: FastAPI, types: Sequence[type[msgspec.Struct]]) -> None:
    """Serve a document with the schemas of ``types``, and of ErrorResponse, at /openapi.json and /docs."""
    _, components = msgspec.json.schema_components([*types, ErrorResponse], ref_template=_TEMPLATE)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            # FastAPI announces 422 for path parameters; this server answers 400.
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            document["components"] = {
                "schemas": components,
                "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer"}},
            }
            document["security"] = [{}, {"apiKey": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _TEMPLATE.format(name=kind.__name__)}
