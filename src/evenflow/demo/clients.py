"""The demo's clients: one that floods the server, three that chat, and the account kept of each.

Everything is measured where a client would: those who chat stream, and see the time to first token and each token as
it arrives; the greedy one takes whole answers, and reads in them how long it waited. Service is what VTC charges: 1 per
prompt token and 2 per output token (VTC, section 3).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from evenflow.bench.load.stream import StreamedReply, stream, whole

PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlan:
    """How one client behaves."""

    name: str
    habit: str
    """In words, for the reader of a table."""
    concurrency: int
    """Requests it keeps in flight."""
    pause_s: float
    """Mean pause between an answer and the next question, in seconds."""
    starts_s: float
    adapters: tuple[str, ...]
    """Its requests are spread over these models."""
    page_tokens: tuple[int, int] | None = None
    """It has texts continued by so many tokens (least, most), not streamed; None: it asks questions in a chat."""
    beginnings: tuple[str, ...] = ()
    """The texts. Required with ``page_tokens``."""
    questions: tuple[str, ...] = ()
    """What a client that chats asks; each request draws one. Required unless ``page_tokens`` is given."""

    def body(self, rng: Random) -> tuple[str, dict[str, Any]]:
        """Draw the next request: (path, body)."""
        model = rng.choice(self.adapters)
        if self.page_tokens:
            begin = rng.choice(self.beginnings)
            return "/v1/completions", {
                "model": model, "prompt": begin, "max_tokens": rng.randint(*self.page_tokens), "ignore_eos": True,
                "temperature": 0.7, "seed": rng.randrange(1 << 30),
            }  # fmt: skip
        messages = [{"role": "user", "content": rng.choice(self.questions)}]
        return "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 48, "temperature": 0.0}


@dataclass(slots=True)
class ClientRecord:
    """What one client has sent and received. Owned by ``run_client``."""

    is_streaming: bool = True

    replies: list[StreamedReply] = field(default_factory=list)
    """Of every request that was sent, also those that were cut off at the end."""
    num_streamed: int = 0
    """Output tokens so far, as they arrived."""
    timeline: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start, service so far), sampled."""

    @property
    def finished(self) -> list[StreamedReply]:
        """Replies that came to their end."""
        return [reply for reply in self.replies if reply.finished_s is not None]

    @property
    def service(self) -> float:
        """Service so far: output tokens count as they arrive, a prompt when its answer is complete (usage comes last)."""
        return PROMPT_WEIGHT * sum(r.prompt_tokens for r in self.replies) + OUTPUT_WEIGHT * self.num_streamed

    def waits_s(self, end_s: float) -> list[float]:
        """Time to first token of every request; for a streamed one that had none yet at the end, how long it had waited.

        Of an answer that is taken whole, the first token's time is known only when it is finished.
        """
        replies = self.replies if self.is_streaming else self.finished
        return sorted((end_s if r.first_token_s is None else r.first_token_s) - r.sent_s for r in replies)


async def run_client(plan: ClientPlan, http: httpx.AsyncClient, account: ClientRecord, seed: int) -> None:
    """Send requests as ``plan`` says until cancelled."""
    await asyncio.sleep(plan.starts_s)
    async with asyncio.TaskGroup() as group:
        for lane in range(plan.concurrency):
            group.create_task(_lane(plan, http, account, Random(f"{seed} {plan.name} {lane}")))


async def _lane(plan: ClientPlan, http: httpx.AsyncClient, account: ClientRecord, rng: Random) -> None:
    counted = 0
    headers = {"x-evenflow-client": plan.name}

    def count() -> None:
        nonlocal counted
        counted += 1
        account.num_streamed += 1

    while True:
        path, body = plan.body(rng)
        reply = StreamedReply(sent_s=time.monotonic())
        account.replies.append(reply)
        counted = 0
        if plan.page_tokens:
            await whole(http, path, body, headers, reply)
        else:
            await stream(http, path, body, headers, reply, count)
        # A token whose text is not complete yet sends no event of its own, so that events may be fewer than tokens.
        account.num_streamed += reply.completion_tokens - counted
        if plan.pause_s:
            await asyncio.sleep(rng.expovariate(1.0 / plan.pause_s))


async def sample(accounts: dict[str, ClientRecord], every_s: float, clock: Callable[[], float]) -> None:
    """Write every account's service into its timeline until cancelled; ``clock`` counts from the start."""
    while True:
        now = clock()
        for account in accounts.values():
            account.timeline.append((now, account.service))
        await asyncio.sleep(every_s)
