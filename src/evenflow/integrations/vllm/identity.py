"""Who is asking, in front of vLLM's server: an ASGI middleware that writes the client into every request.

    vllm serve MODEL --middleware evenflow.integrations.vllm.ClientIdentity

A request reaches vLLM's scheduler without its headers, but with ``vllm_xargs`` of its body. The middleware finds the
client and writes it there; whatever callers write there themselves is taken out first. Once the clients file holds a
key, a key is needed for everything but the probes, and it alone says who the client is; what is not serving (adapters
loaded, the engine put to sleep) needs an administrator's. Knows nothing of vLLM but paths and fields.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from evenflow.base.errors import InvalidKey, InvalidRequest, NotAllowed
from evenflow.integrations.clients import WatchedClients
from evenflow.integrations.http import (
    ASGIApp,
    BodyTooLarge,
    CallerGone,
    Receive,
    Scope,
    Send,
    answer_error,
    headers_of,
    read_body,
    replay,
    with_body,
)
from evenflow.integrations.vllm.request_view import CLIENT_FIELD
from evenflow.integrations.vllm.settings import Settings, read_settings

PROBES = ("/health", "/ping", "/version", "/load", "/metrics")
"""Open to everybody, as in vLLM itself."""

SERVING = (
    "/v1/",
    "/v2/",
    "/inference/",
    "/cohere/",
    "/invocations",
    "/tokenize",
    "/detokenize",
    "/pooling",
    "/classify",
    "/score",
    "/rerank",
)
"""What a client's key opens."""

NOT_SERVING = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""Below /v1, and yet an administrator's."""

GENERATING = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/invocations",
    "/inference/v1/generate",
)
"""Bodies that name a client to the scheduler, in ``vllm_xargs`` or in ``sampling_params.extra_args``."""

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
MOST_BODY_BYTES = 256 << 20


class ClientIdentity:
    """The middleware. Reads the environment when it is made; raises ConfigError for a clients file that cannot be read."""

    def __init__(self, app: ASGIApp, settings: Settings | None = None) -> None:
        self._app = app
        self._settings = read_settings(os.environ) if settings is None else settings
        self._clients = WatchedClients(self._settings.clients, time.monotonic)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may be, with its client written into it."""
        self._clients.poll()
        if scope["type"] == "websocket" and self._clients.directory.needs_key:
            await send({"type": "websocket.close", "code": 1008})  # nothing in it could say who pays
        elif scope["type"] == "http" and scope["method"] != "OPTIONS" and not _is_below(_path(scope), PROBES):
            await self._identify(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _identify(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path, directory = headers_of(scope), _path(scope), self._clients.directory
        try:
            holder = directory.holder(headers)
            if directory.needs_key and (_is_below(path, NOT_SERVING) or not _is_below(path, SERVING)):
                directory.require_admin(holder)
            if scope["method"] == "POST":
                is_form = headers.get("content-type", "").partition(";")[0].strip().lower() in FORMS
                if is_form and directory.needs_key:
                    raise InvalidRequest("a body in the form of a form says nowhere who pays for it; allowed here: JSON")
                if not is_form:
                    body = await read_body(receive, MOST_BODY_BYTES)
                    body = self._with_client(body, path, headers)
                    scope, receive = with_body(scope, body), replay(body, receive)
        except InvalidKey as error:
            await answer_error(send, 401, str(error), "authentication_error", "invalid_api_key")
        except NotAllowed as error:
            await answer_error(send, 403, str(error), "permission_error", "not_allowed")
        except InvalidRequest as error:
            await answer_error(send, 400, str(error), "invalid_request_error", "invalid_client")
        except BodyTooLarge:
            text = f"the body is larger than {MOST_BODY_BYTES} bytes"
            await answer_error(send, 413, text, "invalid_request_error", "body_too_large")
        except CallerGone:
            pass
        else:
            await self._app(scope, receive, send)

    def _with_client(self, body: bytes, path: str, headers: dict[str, str]) -> bytes:
        """The body with the client in it. What is no JSON is left as it is: vLLM refuses it by the same parser."""
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return body
        if not isinstance(content, dict | list):
            return body
        take_out(content)
        if isinstance(content, dict) and _is_below(path, GENERATING):
            client = self._clients.name(headers, self._named(headers, content))
            _write(content, "vllm_xargs", client)
            if isinstance(content.get("sampling_params"), dict):
                _write(content["sampling_params"], "extra_args", client)
        return json.dumps(content).encode()

    def _named(self, headers: dict[str, str], content: dict[str, Any]) -> tuple[str, str] | None:
        """The header that names the client, or the body's own ``user``; only asked where no key decides."""
        for name in self._settings.client_headers:
            if headers.get(name):
                return name, headers[name]
        user = content.get("user")
        return ("user", user) if isinstance(user, str) and user else None


def take_out(content: Any) -> None:
    """Remove the client's field wherever a caller may have put it."""
    open_values = [content]
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            value.pop(CLIENT_FIELD, None)
            open_values += [inner for inner in value.values() if isinstance(inner, dict | list)]
        else:
            open_values += [inner for inner in value if isinstance(inner, dict | list)]


def _write(content: dict[str, Any], field: str, client: str) -> None:
    given = content.get(field)
    if given is None or isinstance(given, dict):  # anything else is wrong, and vLLM says so
        content[field] = {**(given or {}), CLIENT_FIELD: client}


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _is_below(path: str, prefixes: tuple[str, ...]) -> bool:
    """Whether the path is one of ``prefixes`` or lies below one."""
    return any(path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/") for prefix in prefixes)
