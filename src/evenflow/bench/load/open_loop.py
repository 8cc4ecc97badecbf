"""Sending a plan in open loop: every request when it is due, however many of those before are still unanswered.

A server that falls behind therefore meets a queue that grows, as it would among strangers, and its latencies say so. With
a bound on requests under way the loop is half closed: whoever is due and finds no place is sent later, which the figures tell.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import httpx

from evenflow.bench.load.figures import OK, SentRequest
from evenflow.bench.load.load_plan import PlannedRequest
from evenflow.bench.load.naming import Naming
from evenflow.bench.load.stream import RequestFailed, StreamedReply, stream

_TELL_EVERY_S = 0.25


@dataclass(slots=True)
class LoadRun:
    """A load as it goes. Owned by ``send_load``; readers may look at any time. Times of time.monotonic()."""

    num_planned: int
    began_s: float = 0.0
    ended_s: float = 0.0
    is_interrupted: bool = False
    requests: list[SentRequest] = field(default_factory=list)
    num_in_flight: int = 0

    @property
    def num_ended(self) -> int:
        """Answered or failed."""
        return len(self.requests) - self.num_in_flight


def http_client(base_url: str, timeout_s: float) -> httpx.AsyncClient:
    """A client without a bound on connections: no request of a load waits for one. Answers may pause for ``timeout_s``."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=base_url, timeout=httpx.Timeout(timeout_s), limits=limits)


async def send_load(
    http: httpx.AsyncClient,
    path: str,
    plan: Sequence[PlannedRequest],
    naming: Naming,
    *,
    max_concurrency: int | None = None,
    stop: asyncio.Event | None = None,
    tell: Callable[[LoadRun], None] = lambda run: None,
    clock: Callable[[], float] = time.monotonic,
) -> LoadRun:
    """Send every request of ``plan`` and wait for all answers; when ``stop`` is set, give up at once what is under way.

    Failures of single requests are outcomes, never errors of the load. ``tell`` is called a few times a second.
    """
    run = LoadRun(len(plan), began_s=clock())
    places = asyncio.Semaphore(max_concurrency) if max_concurrency else nullcontext()
    stopped = stop or asyncio.Event()

    async def ask(planned: PlannedRequest, due_s: float) -> None:
        async with places:
            reply = StreamedReply(sent_s=clock())
            model = str(planned.body.get("model", ""))
            sent = SentRequest(planned.client, model, due_s, planned.output_len, planned.prompt_words, reply)
            run.requests.append(sent)
            run.num_in_flight += 1
            body = {**planned.body, **naming.fields(planned.client)}
            try:
                await stream(http, path, body, naming.headers(planned.client), reply)
                sent.outcome = OK
            except RequestFailed as error:
                sent.outcome, sent.message = error.kind, str(error)
            finally:
                run.num_in_flight -= 1
            sent.ended_s = clock()

    async def send() -> None:
        async with asyncio.TaskGroup() as group:
            for planned in plan:
                due_s = run.began_s + planned.at_s
                await asyncio.sleep(max(0.0, due_s - clock()))
                group.create_task(ask(planned, due_s))

    async def report() -> None:
        while True:
            tell(run)
            await asyncio.sleep(_TELL_EVERY_S)

    sending, stopping, telling = (asyncio.create_task(job) for job in (send(), stopped.wait(), report()))
    try:
        await asyncio.wait((sending, stopping), return_when=asyncio.FIRST_COMPLETED)
        run.is_interrupted = not sending.done()
    finally:
        for task in (sending, stopping, telling):
            task.cancel()
        results = await asyncio.gather(sending, stopping, telling, return_exceptions=True)
    run.ended_s = clock()
    tell(run)
    if isinstance(results[0], Exception):
        raise results[0]
    return run
