"""The page at /docs: the OpenAPI document for people to read, without a script or a style from anywhere else."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'"
_ASSETS = {"api_page.js": "text/javascript", "api_page.css": "text/css"}


def add_api_page(app: FastAPI) -> None:
    """Serve the page and its two assets."""

    def asset(name: str, media_type: str) -> Response:
        content = resources.files(__package__).joinpath("assets", name).read_bytes()
        return Response(content, media_type=media_type, headers={"content-security-policy": _POLICY})

    async def page(request: Request) -> Response:
        return asset("api_page.html", "text/html")

    async def part(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _ASSETS:
            return Response(status_code=404)
        return asset(name, _ASSETS[name])

    app.add_route("/docs", page, include_in_schema=False)
    app.add_route("/docs/{name}", part, include_in_schema=False)
