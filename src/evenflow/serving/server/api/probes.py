"""The routes that ask about the server itself: health, readiness, metrics, version."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response

from evenflow.base.errors import ServerFull
from evenflow.base.version import __version__
from evenflow.serving.server.api.endpoint import json_reply
from evenflow.serving.server.api.responses import Health, Load, Version
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.http.error_answers import headers_of
from evenflow.serving.server.http.openapi import documented
from evenflow.serving.server.metrics.metrics_page import CONTENT_TYPE


def add_probe_routes(app: FastAPI, state: ServerState) -> None:
    """Register the routes on ``app``; each answers HEAD too."""

    def unready(reason: str) -> Response:
        return json_reply(Health(reason), 503, headers_of(ServerFull(reason)))

    @app.get("/ping", **documented(None, Health, (503,)))
    async def ping() -> Response:
        """Liveness: 200 while the server can ever serve, also before it is warm; 503, with the reason, once it cannot."""
        trouble = state.engine.trouble
        return json_reply(Health("ok")) if trouble is None else unready(trouble)

    @app.get("/health", **documented(None, Health, (503,)))
    async def health() -> Response:
        """200 from the time the engine is warm until it is dead or shows no life: fit for charts that use it as readiness."""
        trouble = state.engine.trouble
        if trouble is not None:
            return unready(trouble)
        return json_reply(Health("ok")) if state.is_warm else unready("warming up")

    @app.get("/ready", **documented(None, Health, (503,)))
    async def ready() -> Response:
        """200 while new requests are taken; 503 before the engine is warm and while the server drains."""
        if state.is_open:
            return json_reply(Health("ready"))
        return unready("draining" if state.is_draining else "warming up" if state.engine.is_alive else "the engine is dead")

    @app.get("/metrics", **documented(None, "text/plain"))
    async def metrics() -> Response:
        """Prometheus series."""
        return Response(state.metrics.render(state.figures()), media_type=CONTENT_TYPE)

    @app.get("/version", **documented(None, Version))
    async def version() -> Response:
        """The server's version."""
        return json_reply(Version(__version__))

    @app.get("/load", **documented(None, Load))
    async def load() -> Response:
        """vLLM's measure of load: HTTP requests that are being answered by the model."""
        return json_reply(Load(state.num_in_flight))

    for path, probe in (
        ("/ping", ping),
        ("/health", health),
        ("/ready", ready),
        ("/metrics", metrics),
        ("/version", version),
        ("/load", load),
    ):
        app.add_api_route(path, probe, methods=["HEAD"], include_in_schema=False)
