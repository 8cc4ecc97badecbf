"""Web pages as callers: which may call this server, and how a name that was turned towards it is noticed.

A browser sends ``Origin`` with every request that may change something. Such a request is taken if the page came from
this server itself or from an allowed origin. A server on this machine's own address is also reached under foreign
names, when somebody lets their name point to 127.0.0.1 (DNS rebinding): then the page and the server seem to be of one
origin, but the name is not one of this machine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from evenflow.base.errors import NotAllowed
from evenflow.serving.server.http.error_answers import error_response

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
ANY = "*"


def is_loopback(host: str) -> bool:
    """True if only this machine can reach a server that listens on ``host``, or that has this name."""
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class OriginCheck:
    """Refuses requests of foreign web pages that may change something; a request without ``Origin`` is no web page's."""

    def __init__(self, app: ASGIApp, *, bound_to: str, allowed_origins: Sequence[str]) -> None:
        self._app = app
        self._bound_to = bound_to
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS:
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and not self._may_call(origin, headers):
                refusal = NotAllowed(
                    f"web pages of the origin {origin[:80]!r} may not call this server; it was started without them in "
                    "--allowed-origins"
                )
                await error_response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _may_call(self, origin: str, headers: Mapping[str, str]) -> bool:
        if ANY in self._allowed or origin.lower() in self._allowed:
            return True
        try:
            page = urlsplit(origin)
        except ValueError:
            return False
        if page.scheme not in ("http", "https") or page.netloc.lower() != headers.get("host", "").lower():
            return False
        # The page came from the name under which it calls; on a local address that name must be a local one.
        return not is_loopback(self._bound_to) or is_loopback(page.hostname or "")
