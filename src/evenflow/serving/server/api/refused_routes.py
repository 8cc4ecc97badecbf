"""Routes of other servers that ask for what no generative model here can give: refused with the reason, not just unknown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from evenflow.serving.server.api.endpoint import json_reply
from evenflow.serving.server.http.error_answers import ErrorDetail, ErrorResponse

REFUSED_PATHS: dict[str, Sequence[str]] = {
    "embeddings: this server generates text with a causal language model, and pools no hidden states": (
        "/v1/embeddings",
        "/embeddings",
        "/v2/embed",
        "/pooling",
    ),
    "scores of pairs or classes: this server generates text, and has no head that scores": (
        "/classify",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
    ),
    "sound: this server reads and writes text only": (
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/audio/speech",
    ),
    "pictures: this server reads and writes text only": ("/v1/images/generations", "/v1/images/edits"),
    "moderation: this server has no model for it": ("/v1/moderations",),
    "files, batches and fine-tuning: this server stores nothing; send the requests themselves": (
        "/v1/files",
        "/v1/batches",
        "/v1/fine_tuning/jobs",
    ),
}
"""What is not served, and why, to the routes that would serve it."""


def add_refused_routes(app: FastAPI) -> None:
    """Register all of them on ``app``: 404 with the code ``not_served``."""
    for reason, paths in REFUSED_PATHS.items():
        for path in paths:
            app.add_api_route(path, _refusal(path, reason), methods=["POST"], include_in_schema=False)


def _refusal(path: str, reason: str) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(request: Request) -> Response:
        message = f"{path} is not served here. It asks for {reason}."
        return json_reply(ErrorResponse(ErrorDetail(message, "invalid_request_error", code="not_served")), 404)

    return refuse
