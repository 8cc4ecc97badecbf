"""May this request start beside those that run? Asked only when its prompt and its adapter would fit right now."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from evenflow.serving.core.request import Request


@dataclass(frozen=True, slots=True)
class MemoryView:
    """The arena, as one candidate would find it."""

    page_tokens: int
    num_kv_pages: int
    """Pages that KV may ever take beside the adapters in use, the candidate's included."""
    num_available_pages: int
    """Pages that are free or idle, once the candidate has its adapter and what the prefix cache lends it."""
    prompt_pages: int
    """Pages that the candidate takes when it starts: its prompt, and what it had produced before a preemption, less
    what it borrows."""


class Admission(Protocol):
    """Decides by memory alone; the order of requests is the policy's."""

    def begin(self, running: Iterable[Request]) -> None:
        """A step considers candidates beside these running requests."""
        ...

    def fits(self, request: Request, memory: MemoryView) -> bool:
        """True if the candidate may start."""
        ...

    def admitted(self, request: Request) -> None:
        """The candidate starts; it counts as running for the next one of this step."""
        ...

    def finished(self, request: Request) -> None:
        """A request has ended, by itself or not: what can be learnt from its length."""
        ...


class PredictAndPreempt:
    """For unknown lengths: leave room for a share of an average output per running request; preempt when that was wrong.

    Those in the batch have half of their outputs before them on average, but not all at once: as some grow, others
    end and leave their pages. A quarter each keeps preemptions rare without leaving much memory unused
    (benchmarks/recipes/admission.py). The average is an exponential one over requests that ended by themselves.
    O(1) per candidate. ``window``: of all layers, in tokens; a request as long as that grows no more. None: all grow.
    """

    def __init__(
        self,
        *,
        growth_share: float = 0.25,
        initial_output_tokens: float = 64.0,
        smoothing: float = 0.05,
        window: int | None = None,
    ) -> None:
        self.mean_output_tokens = initial_output_tokens
        self._growth_share = growth_share
        self._smoothing = smoothing
        self._window = window
        self._num_growing = 0

    def begin(self, running: Iterable[Request]) -> None:
        """Count."""
        self._num_growing = sum(map(self._grows, running))

    def fits(self, request: Request, memory: MemoryView) -> bool:
        """Prompt and expected growth fit what is free or idle."""
        growth_tokens = (self._num_growing + self._grows(request)) * self.mean_output_tokens * self._growth_share
        return memory.prompt_pages + growth_tokens / memory.page_tokens <= memory.num_available_pages

    def admitted(self, request: Request) -> None:
        """Count."""
        self._num_growing += self._grows(request)

    def finished(self, request: Request) -> None:
        """Learn the length of a request that ended by itself."""
        if request.finish_reason in ("stop", "length"):
            self.mean_output_tokens += self._smoothing * (request.num_output_tokens - self.mean_output_tokens)

    def _grows(self, request: Request) -> bool:
        return self._window is None or request.num_tokens < self._window


class KnownPeak:
    """For known lengths: admit if the future peak of memory fits (LightLLM's test, as the papers' servers use it).

    Let the k-th of the running requests, by remaining length descending, have used u_k tokens and r_k remaining.
    When it ends, the k longest hold r_k k + sum_{j <= k} u_j tokens; the greatest of these is the peak, and it
    must stay below the KV capacity. A request without known length counts with its max_output_tokens.
    With pages of more than one token every request counts the tail of its last page: the test stays safe.

    ``reserved_tokens`` are set aside per distinct client or adapter among the requests (the papers' server: 4 x
    rank per adapter directory, adapters loaded or not).
    """

    def __init__(self, *, reserved_tokens: int = 0, reserved_by: Literal["client", "adapter"] = "adapter") -> None:
        self._reserved_tokens = reserved_tokens
        self._reserved_by = reserved_by
        self._by_remaining: list[tuple[int, int]] = []
        """(-remaining, used), sorted: the longest remaining first."""
        self._reserving: set[str | None] = set()

    def begin(self, running: Iterable[Request]) -> None:
        """Sort what runs by remaining length."""
        self._by_remaining = sorted(self._demand(request) for request in running)
        if self._reserved_tokens:
            self._reserving = {self._reserver(request) for request in running}

    def fits(self, request: Request, memory: MemoryView) -> bool:
        """The peak with the candidate stays below the capacity less what is reserved. O(running)."""
        capacity = memory.num_kv_pages * memory.page_tokens
        if self._reserved_tokens:
            capacity -= self._reserved_tokens * len(self._reserving | {self._reserver(request)} - {None})
        demands = self._by_remaining
        candidate = self._demand(request)
        place = bisect.bisect_right(demands, candidate)
        tail = memory.page_tokens - 1
        used = 0
        for count, (negative, produced) in enumerate((*demands[:place], candidate, *demands[place:]), start=1):
            used += produced + tail
            if used - negative * count >= capacity:
                return False
        return True

    def admitted(self, request: Request) -> None:
        """Insert, at its place."""
        bisect.insort_right(self._by_remaining, self._demand(request))
        if self._reserved_tokens:
            self._reserving.add(self._reserver(request))

    def finished(self, request: Request) -> None:
        """Nothing to learn: lengths are known."""

    def _reserver(self, request: Request) -> str | None:
        return request.client_id if self._reserved_by == "client" else request.adapter

    @staticmethod
    def _demand(request: Request) -> tuple[int, int]:
        """(-remaining, used) of a request. One that has produced nothing counts its first token as used."""
        length = request.known_output_tokens
        if length is None:
            length = request.max_output_tokens
        produced = request.num_output_tokens
        remaining = length - produced - 1
        return -max(0, remaining), request.num_prompt_tokens + max(1, produced)
