"""A fair reverse proxy in front of any engine that speaks HTTP: SGLang, TGI, Ollama, a hosted API.

    python examples/fair_proxy.py http://127.0.0.1:30000 --limit 16 --clients clients.toml

Callers name themselves in the header x-evenflow-client, or by their key if clients.toml holds any. ``--limit`` is how many
requests the engine runs side by side: what is more waits here, in the policy's order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import httpx
import uvicorn

from evenflow.integrations.gateway import FairGateway
from evenflow.integrations.http import ASGIApp, Receive, Scope, Send, read_body

NOT_PASSED_ON = {b"host", b"connection", b"content-length", b"transfer-encoding"}


def proxy_to(url: str, http: httpx.AsyncClient) -> ASGIApp:
    """An application that passes every request on to ``url``, and its answer back as it comes."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in NOT_PASSED_ON]
        body = await read_body(receive, 64 << 20)
        query = scope.get("query_string", b"").decode()
        target = url + scope["path"] + ("?" + query if query else "")
        async with http.stream(scope["method"], target, headers=headers, content=body) as answer:
            kept = [(name, value) for name, value in answer.headers.raw if name.lower() not in NOT_PASSED_ON]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
            async for part in answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return proxy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--policy", default="vtc")
    parser.add_argument("--clients", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    http = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))
    app = FairGateway(proxy_to(args.url.rstrip("/"), http), args.limit, args.policy, args.clients)
    uvicorn.run(app, host="127.0.0.1", port=args.port)


if __name__ == "__main__":
    main()
