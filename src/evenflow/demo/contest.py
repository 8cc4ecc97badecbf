"""One round of the demo: a server under one policy, all adapters registered, four clients at once.

The server is a real process that is spoken to over HTTP alone; nothing here looks inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from evenflow.bench.load.figures import quantile
from evenflow.bench.load.server_process import ServerProcess
from evenflow.bench.load.stream import RequestFailed
from evenflow.demo.clients import ClientPlan, ClientRecord, run_client, sample

_SAMPLE_EVERY_S = 0.2
_LOADS_AT_ONCE = 4

Say = Callable[[str, float], None]
"""Called with what is going on and how far it is, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class ClientResult:
    """What one client got in one round."""

    name: str
    num_requests: int
    """Finished."""
    num_cut_off: int
    """Sent, but not finished when the round ended."""
    tokens: int
    """Prompt tokens of finished requests, and output tokens received."""
    service: float
    share: float
    """Of all clients' service."""
    ttft_p50_s: float
    ttft_p99_s: float
    timeline: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Round:
    """What one policy did with the four clients."""

    policy: str
    seconds: float
    start_s: float
    register_s: float
    num_adapters: int
    """Registered with the engine, as /v1/adapters counts them."""
    num_adapters_used: int
    num_adapter_loads: int
    """Copies into the arena, evicted adapters that came back included."""
    num_resident: int
    clients: list[ClientResult]


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """Return the first error itself: all tasks of a group fail for the same reason, a server that is gone or refuses."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


def limits(connections: int) -> httpx.Limits:
    """Return limits under which no request of the demo waits for a connection."""
    return httpx.Limits(max_connections=connections, max_keepalive_connections=connections)


async def register(http: httpx.AsyncClient, folders: Mapping[str, Path], say: Say) -> float:
    """Register adapters by POST /v1/load_lora_adapter; return the seconds it took. Raises RequestFailed."""
    began = time.monotonic()
    queue = list(folders.items())[::-1]
    total = len(queue)

    async def load() -> None:
        while queue:
            name, folder = queue.pop()
            response = await http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)})
            if response.status_code != 200:
                status = response.status_code
                raise RequestFailed(f"loading adapter {name} answered {status}: {response.text[:300]}", str(status))
            say("registering adapters", 1 - len(queue) / total)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_LOADS_AT_ONCE):
                group.create_task(load())
    except ExceptionGroup as failures:
        raise _first(failures) from None
    return time.monotonic() - began


async def _adapters(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    response = await http.get("/v1/adapters", timeout=30.0)
    response.raise_for_status()
    body = response.json()
    listed: list[dict[str, Any]] = body["data"] if isinstance(body, dict) else body
    return listed


async def compete(http: httpx.AsyncClient, plans: Sequence[ClientPlan], seconds: float, say: Say) -> list[ClientResult]:
    """Let all clients run for ``seconds``; return what each got. Raises RequestFailed."""
    accounts = {plan.name: ClientRecord(is_streaming=not plan.page_tokens) for plan in plans}
    began = time.monotonic()

    def clock() -> float:
        return time.monotonic() - began

    async def everyone() -> None:
        async with asyncio.TaskGroup() as group:
            for number, plan in enumerate(plans):
                group.create_task(run_client(plan, http, accounts[plan.name], number))
            group.create_task(sample(accounts, _SAMPLE_EVERY_S, clock))

    async def tell() -> None:
        while True:
            say("four clients at once", min(1.0, clock() / seconds))
            await asyncio.sleep(0.25)

    teller = asyncio.create_task(tell())
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(everyone(), seconds)
    except ExceptionGroup as group:
        raise _first(group) from None
    finally:
        teller.cancel()
    end = began + seconds
    total = sum(account.service for account in accounts.values())
    results = []
    for name, account in accounts.items():
        waits = account.waits_s(end)
        finished = account.finished
        results.append(
            ClientResult(
                name=name,
                num_requests=len(finished),
                num_cut_off=len(account.replies) - len(finished),
                tokens=sum(r.prompt_tokens for r in finished) + account.num_streamed,
                service=account.service,
                share=account.service / total if total else float("nan"),
                ttft_p50_s=quantile(waits, 0.50),
                ttft_p99_s=quantile(waits, 0.99),
                timeline=account.timeline,
            )
        )
    return results


async def play_round(
    server: ServerProcess, policy: str, start_s: float, folders: Mapping[str, Path], plans: Sequence[ClientPlan],
    seconds: float, say: Say, then: Callable[[httpx.AsyncClient], Any] | None = None,
) -> Round:  # fmt: skip
    """Register ``folders`` with a server that is ready, let the clients compete, and count; ``then`` runs afterwards."""
    in_flight = sum(plan.concurrency for plan in plans) + 8
    async with httpx.AsyncClient(base_url=server.url, timeout=120.0, limits=limits(in_flight)) as http:
        register_s = await register(http, folders, say)
        clients = await compete(http, plans, seconds, say)
        adapters = await _adapters(http)
        if then is not None:
            await then(http)
    return Round(
        policy=policy,
        seconds=seconds,
        start_s=start_s,
        register_s=register_s,
        num_adapters=len(adapters),
        num_adapters_used=sum(1 for a in adapters if a.get("num_loads", 0) > 0),
        num_adapter_loads=sum(int(a.get("num_loads", 0)) for a in adapters),
        num_resident=sum(1 for a in adapters if a.get("state") == "resident"),
        clients=clients,
    )
