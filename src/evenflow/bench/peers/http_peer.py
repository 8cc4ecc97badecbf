"""Engines that are servers: a process of its own, asked over HTTP with token ids, loaded by the house's own load."""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from evenflow.base.errors import ConfigError
from evenflow.bench.load.figures import OK
from evenflow.bench.load.load_plan import PlannedRequest
from evenflow.bench.load.naming import ByHeader
from evenflow.bench.load.open_loop import http_client, send_load
from evenflow.bench.load.server_process import HttpServerProcess
from evenflow.bench.peers.peer import Batch, PeerFailed, Setup, Timing

START_TIMEOUT_S = 400.0
_ANSWER_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How a server is started; host and port are added."""

    words: Sequence[str]
    ready_path: str
    variables: Mapping[str, str] = field(default_factory=dict)
    """Set in its environment."""


class HttpPeer:
    """A peer behind HTTP; what differs between servers are the four methods below."""

    name = "server"

    def __init__(self) -> None:
        self._server: HttpServerProcess | None = None

    def command(self, setup: Setup) -> ServerCommand:
        """How to start it. Raises PeerMissing."""
        raise NotImplementedError

    def fields(self, adapter: str | None) -> dict[str, Any]:
        """What a body of /v1/completions says of the adapter, and that the answer has its full length."""
        raise NotImplementedError

    def question(self, prompt: Sequence[int], adapter: str | None, output_tokens: int) -> tuple[str, dict[str, Any]]:
        """Path and body of a request whose answer tells its token ids."""
        body = {"prompt": list(prompt), "max_tokens": output_tokens, "temperature": 0, **self.fields(adapter)}
        return "/v1/completions", {**body, "return_token_ids": True}

    def token_ids(self, answer: Mapping[str, Any]) -> list[int]:
        """Out of the answer to ``question``."""
        return list(answer["choices"][0]["token_ids"])

    def start(self, setup: Setup) -> None:
        """See Peer."""
        command = self.command(setup)
        self._server = HttpServerProcess(
            command.words,
            setup.logs / f"{self.name.replace(':', '-')}.log",
            ready_path=command.ready_path,
            environment={**os.environ, **command.variables},
        )
        self._server.__enter__()
        try:
            self._server.wait_ready(START_TIMEOUT_S)
        except ConfigError as error:
            raise PeerFailed(str(error)) from None

    def answer(self, batch: Batch) -> list[list[int]]:
        """See Peer."""
        found = []
        with httpx.Client(base_url=self._running.url, timeout=_ANSWER_TIMEOUT_S) as http:
            for prompt, adapter in zip(batch.prompts, batch.adapters, strict=True):
                path, body = self.question(prompt, adapter, batch.output_tokens)
                try:
                    response = http.post(path, json=body)
                    if response.status_code != 200:
                        raise PeerFailed(f"{path} answered {response.status_code}: {response.text[:300]}")
                    found.append(self.token_ids(response.json()))
                except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
                    raise PeerFailed(f"{path}: {type(error).__name__} {error}") from None
        return found

    def measure(self, batch: Batch) -> Timing:
        """See Peer."""
        plan = [
            PlannedRequest(
                0.0,
                f"client-{i}",
                {"prompt": list(prompt), "max_tokens": batch.output_tokens, "temperature": 0, **self.fields(adapter)},
                len(prompt),
                batch.output_tokens,
            )
            for i, (prompt, adapter) in enumerate(zip(batch.prompts, batch.adapters, strict=True))
        ]
        return asyncio.run(self._load(plan))

    async def _load(self, plan: Sequence[PlannedRequest]) -> Timing:
        async with http_client(f"{self._running.url}/v1/", _ANSWER_TIMEOUT_S) as http:
            run = await send_load(http, "completions", plan, ByHeader())
        for request in run.requests:
            if request.outcome != OK:
                raise PeerFailed(request.message)
            if request.output_tokens != request.wanted_tokens:
                raise PeerFailed(f"an answer has {request.output_tokens} tokens instead of {request.wanted_tokens}")
        firsts = [request.ttft_s for request in run.requests if request.ttft_s is not None]
        last_s = max(request.reply.finished_s or run.ended_s for request in run.requests)
        return Timing(last_s - run.began_s, statistics.median(firsts) if firsts else None)

    def stop(self) -> None:
        """See Peer."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    @property
    def _running(self) -> HttpServerProcess:
        assert self._server is not None, "a peer is started before it is asked"
        return self._server
