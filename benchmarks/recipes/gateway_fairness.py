"""A gateway's limits beside fair dispatch: what a quiet client waits, what is refused, what capacity stays unused.

    python benchmarks/recipes/gateway_fairness.py --json benchmarks/results/gateway_fairness--MACHINE.json

The backend is a stand-in that serves 16 requests at once, first come first served, 20 ms a token, and streams as
OpenAI does; it runs in the same process, so that the gateways alone differ. Three gateways in front of it, in turn, A
B C A B C:

* ``none``: everything is passed on;
* ``limit``: what API gateways offer against noisy neighbours (LiteLLM's ``max_parallel_requests`` of a key, an equal share of
  the places each): beyond it 429, and callers try again as OpenAI's clients do, after 0.5 s, doubled up to 8 s;
* ``vtc``: ``evenflow.integrations.gateway`` with 16 places.

Three loads: ``alone`` (one client, 64 requests), ``flood`` (the same, and another client's short requests one after
the other), ``mixed`` (four clients, of which one asks for answers eight times as long as the others').
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from evenflow.bench.harness import write_result
from evenflow.integrations.gateway import FairGateway
from evenflow.integrations.http import ASGIApp, Message, Receive, Scope, Send, answer_error

PLACES, TOKEN_S, PROMPT_TOKENS = 16, 0.02, 64
GATEWAYS = ("none", "limit", "vtc")


class Backend:
    """Sixteen places, first come first served."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(PLACES)
        self.tokens_by_client: dict[str, int] = {}
        self.service_by_client: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = json.loads((await receive())["body"])
        async with self._places:
            self._serve(body["user"], PROMPT_TOKENS)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for number in range(body["max_tokens"]):
                await asyncio.sleep(TOKEN_S)
                self._serve(body["user"], 2)
                self.tokens_by_client[body["user"]] = self.tokens_by_client.get(body["user"], 0) + 1
                event = {"choices": [{"index": 0, "text": "x"}]}
                is_last = number + 1 == body["max_tokens"]
                part = b"data: " + json.dumps(event).encode() + b"\n\n"
                await send({"type": "http.response.body", "body": part, "more_body": not is_last})

    def _serve(self, client: str, service: int) -> None:
        self.service_by_client[client] = self.service_by_client.get(client, 0) + service


class ParallelLimit:
    """At most ``most`` requests of a client at once; the rest is answered 429."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._running: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = await receive()
        client = json.loads(first["body"])["user"]
        if self._running.get(client, 0) >= self._most:
            await answer_error(send, 429, "too many requests at once", "rate_limit_error", "rate_limit_exceeded")
            return
        self._running[client] = self._running.get(client, 0) + 1

        async def again() -> Message:
            return first

        try:
            await self._app(scope, again, send)
        finally:
            self._running[client] -= 1


class Caller:
    """Sends requests to one gateway and counts what comes back."""

    def __init__(self, gateway: ASGIApp, seed: int) -> None:
        self._gateway = gateway
        self._random = random.Random(seed)
        self.num_refused = 0

    async def ask(self, client: str, output: int) -> float:
        """Seconds until the first token, tries included."""
        start = time.perf_counter()
        for attempt in itertools.count():
            status, first = await self._once(client, output)
            if status == 200:
                assert first is not None
                return first - start
            self.num_refused += 1
            pause_s = min(0.5 * 2**attempt, 8.0)
            await asyncio.sleep(pause_s * (1 - 0.25 * self._random.random()))
        raise AssertionError

    async def _once(self, client: str, output: int) -> tuple[int, float | None]:
        body = json.dumps({"user": client, "prompt": "x" * 4 * PROMPT_TOKENS, "max_tokens": output, "stream": True}).encode()
        status, first, is_given = 0, None, False

        async def receive() -> Message:
            nonlocal is_given
            if is_given:
                await asyncio.Event().wait()
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status = message["status"]
            elif first is None:
                first = time.perf_counter()

        await self._gateway({"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}, receive, send)
        return status, first


async def measure(gateway_name: str, load: str, seed: int) -> dict[str, Any]:
    """One round of one load."""
    backend = Backend()
    num_clients = {"alone": 2, "flood": 2, "mixed": 4}[load]
    gateway: ASGIApp = backend
    if gateway_name == "limit":
        gateway = ParallelLimit(backend, PLACES // num_clients)
    elif gateway_name == "vtc":
        gateway = FairGateway(backend, PLACES)
    caller = Caller(gateway, seed)
    start = time.perf_counter()
    quiet: list[float] = []
    shares: dict[str, float] = {}
    if load == "mixed":

        async def go_on(client: str, output: int) -> None:
            while True:
                await caller.ask(client, output)

        lengths = {"long": 160, "b": 20, "c": 20, "d": 20}
        tasks = [asyncio.create_task(go_on(client, output)) for client, output in lengths.items() for _ in range(16)]
        await asyncio.sleep(20.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        total = sum(backend.service_by_client.values())
        shares = {client: round(service / total, 3) for client, service in backend.service_by_client.items()}
    else:
        tasks = [asyncio.create_task(caller.ask("greedy", 64)) for _ in range(64)]
        if load == "flood":
            await asyncio.sleep(0.3)
            quiet = [await caller.ask("quiet", 8) for _ in range(5)]
        await asyncio.gather(*tasks)
    took = time.perf_counter() - start
    return {
        "took_s": round(took, 2),
        "used_of_capacity": round(sum(backend.tokens_by_client.values()) * TOKEN_S / PLACES / took, 3),
        "quiet_first_token_s": [round(t, 3) for t in quiet],
        "refused": caller.num_refused,
        "shares_of_service": shares,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for load in ("alone", "flood", "mixed"):
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in GATEWAYS}
        for repeat in range(1 if load == "mixed" else args.repeats):
            for name in GATEWAYS:
                rounds[name].append(asyncio.run(measure(name, load, repeat)))
        results[load] = {
            name: {
                "took_s": statistics.median(r["took_s"] for r in rows),
                "used_of_capacity": statistics.median(r["used_of_capacity"] for r in rows),
                "quiet_first_token_s": statistics.median(t for r in rows for t in r["quiet_first_token_s"] or [0.0]),
                "quiet_longest_s": statistics.median(max(r["quiet_first_token_s"] or [0.0]) for r in rows),
                "refused": statistics.median(r["refused"] for r in rows),
                "rounds": rows,
            }
            for name, rows in rounds.items()
        }
        for name, row in results[load].items():
            print(load, name, {k: v for k, v in row.items() if k != "rounds"}, row["rounds"][0]["shares_of_service"])
    write_result(args.json, "gateway_fairness", {"places": PLACES, "token_s": TOKEN_S, "repeats": args.repeats}, results)


if __name__ == "__main__":
    main()
