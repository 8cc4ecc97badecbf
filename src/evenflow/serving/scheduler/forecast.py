"""When a waiting request will have its first token, learnt from those before it. Knows no policy, no batch and no memory.

Rest = wait + prefill.

* wait = prompt tokens ahead of it in its line / the pace at which that line is taken, times a correction. Under a fair policy
  every client is a line: its requests are served in order and wait for no other client's backlog, and the pace of a line
  has the client's share in it. Under first come, first served all are one line. Both are kept, and the one that has been
  closer to the truth is believed. A young line's pace leans on an even share of all.
* prefill = a + b x prompt tokens, the line of best fit through (prompt, start to first token) of the last requests.
* the correction is the average ratio of wait to predicted wait: what the model above does not know is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from evenflow.serving.core.request import Request, RequestId

WINDOW_S = 10.0
"""Time constant of a line's pace."""
PRIOR_S = 2.0
"""How many seconds of its own a line must have seen until they count as much as everybody's average."""


@dataclass(slots=True)
class Line:
    """What waits somewhere, and how fast it is taken: tokens over time, both fading, as long as more than one waits.

    With one waiting nothing can be learnt: on an idle server it starts at once, which says nothing about a busy one.
    """

    num_waiting: int = 0
    tokens_in: int = 0
    """Prompt tokens that ever joined."""
    tokens_out: int = 0
    """Prompt tokens that ever left."""
    taken: float = 0.0
    busy_s: float = 0.0
    flowed: float = 0.0
    """The same over all time, idle or not: a line is taken at least as fast as that."""
    seen_s: float = 0.0
    updated_s: float = 0.0

    def join(self, num_tokens: int, now_s: float) -> None:
        """A request comes."""
        self._advance(now_s)
        self.num_waiting += 1
        self.tokens_in += num_tokens

    def leave(self, num_tokens: int, now_s: float, *, is_taken: bool) -> None:
        """A request starts, or gives up."""
        self._advance(now_s)
        self.num_waiting -= 1
        self.tokens_out += num_tokens
        if is_taken:
            self.flowed += num_tokens
            self.taken += num_tokens if self.num_waiting else 0

    def pace(self, now_s: float, prior: float = 0.0, prior_s: float = 0.0) -> float:
        """Tokens per second, as if ``prior`` had been seen for ``prior_s`` before."""
        self._advance(now_s)
        seen_s = self.busy_s + prior_s
        return (self.taken + prior * prior_s) / seen_s if seen_s > 0 else 0.0

    def flow(self, now_s: float) -> float:
        """Tokens per second over all time."""
        self._advance(now_s)
        return self.flowed / self.seen_s if self.seen_s > 0 else 0.0

    def _advance(self, now_s: float) -> None:
        if now_s <= self.updated_s:
            return
        fade = math.exp((self.updated_s - now_s) / WINDOW_S)
        gained_s = WINDOW_S * (1.0 - fade)
        self.flowed *= fade
        self.seen_s = self.seen_s * fade + gained_s
        if self.num_waiting > 1:
            self.taken *= fade
            self.busy_s = self.busy_s * fade + gained_s
        self.updated_s = now_s


@dataclass(slots=True)
class PrefillTime:
    """Line of best fit through (tokens, seconds), older points fading; neither end below 0."""

    fade: float = 0.98
    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def learn(self, num_tokens: int, seconds: float) -> None:
        """One prompt took so long."""
        for name, value in (
            ("n", 1.0),
            ("x", num_tokens),
            ("y", seconds),
            ("xx", num_tokens * num_tokens),
            ("xy", num_tokens * seconds),
        ):
            setattr(self, name, self.fade * getattr(self, name) + value)

    def __call__(self, num_tokens: int) -> float:
        """Seconds for a prompt; 0 if none was ever seen."""
        if self.n == 0.0:
            return 0.0
        mean_x, mean_y = self.x / self.n, self.y / self.n
        spread = self.xx / self.n - mean_x * mean_x
        slope = (self.xy / self.n - mean_x * mean_y) / spread if spread > 1e-6 * mean_x * mean_x else 0.0
        slope = min(max(slope, 0.0), mean_y / mean_x)
        return mean_y + slope * (num_tokens - mean_x)


@dataclass(slots=True)
class _Place:
    """Where a request stands in its line, and what was predicted when it came."""

    line: str
    tokens_before: int
    since_s: float
    predicted_wait_s: float


class LineForecast:
    """Waits, if those of one line are served in order and the lines side by side. ``line_of`` names a request's line."""

    def __init__(self, line_of: Callable[[Request], str], smoothing: float = 0.05) -> None:
        self._line_of = line_of
        self._smoothing = smoothing
        self.correction = 1.0
        self.error = 0.0
        """Average distance of waits from the predicted ones, as a logarithm of their ratio."""
        self._everybody = Line()
        self._lines: dict[str, Line] = {}
        self._places: dict[RequestId, _Place] = {}

    def enqueued(self, request: Request, now_s: float) -> None:
        """It joins its line."""
        name = self._line_of(request)
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = Line(updated_s=now_s)
        place = self._places[request.request_id] = _Place(name, line.tokens_in, now_s, 0.0)
        for each in (line, self._everybody):
            each.join(request.num_prompt_tokens, now_s)
        place.predicted_wait_s = self._uncorrected(place, now_s)

    def started(self, request: Request, now_s: float) -> None:
        """It runs: compare its wait with what was predicted."""
        place = self._leave(request, now_s, is_taken=True)
        # a tenth of a second on both: ratios of moments say nothing
        ratio = (now_s - place.since_s + 0.1) / (place.predicted_wait_s + 0.1)
        off = min(max(ratio / self.correction, 0.1), 10.0)
        self.error += self._smoothing * (abs(math.log(off)) - self.error)
        self.correction = min(max(self.correction * off**self._smoothing, 0.25), 4.0)

    def cancelled(self, request: Request, now_s: float) -> None:
        """It leaves its line without having run."""
        self._leave(request, now_s, is_taken=False)

    def wait_s(self, request: Request, now_s: float) -> float:
        """Seconds until one that waits will start."""
        return self.correction * self._uncorrected(self._places[request.request_id], now_s)

    def check_integrity(self, never_run: Collection[Request]) -> None:
        """Assert that the lines hold those that wait."""
        assert self._places.keys() == {request.request_id for request in never_run}
        waiting: dict[str, tuple[int, int]] = {}
        for request in never_run:
            name = self._line_of(request)
            count, tokens = waiting.get(name, (0, 0))
            waiting[name] = (count + 1, tokens + request.num_prompt_tokens)
        lines = {name: (line.num_waiting, line.tokens_in - line.tokens_out) for name, line in self._lines.items()}
        assert lines == waiting, "a line does not hold what waits in it"
        assert self._everybody.num_waiting == len(never_run)

    def _uncorrected(self, place: _Place, now_s: float) -> float:
        line = self._lines[place.line]
        # what has left is taken to have stood before it; of those given up behind it that is not so, which is hopeful
        ahead = max(place.tokens_before - line.tokens_out, 0)
        everybody = self._everybody
        share = everybody.pace(now_s, everybody.flow(now_s), PRIOR_S) / len(self._lines)
        pace = line.pace(now_s, share, PRIOR_S)
        return ahead / pace if pace > 0 else 0.0

    def _leave(self, request: Request, now_s: float, *, is_taken: bool) -> _Place:
        place = self._places.pop(request.request_id)
        line = self._lines[place.line]
        for each in (line, self._everybody):
            each.leave(request.num_prompt_tokens, now_s, is_taken=is_taken)
        if not line.num_waiting:
            del self._lines[place.line]
        return place


class FirstTokenForecast:
    """Told of every request; O(1) per call. Lines in which nobody waits are forgotten."""

    def __init__(self) -> None:
        self.prefill = PrefillTime()
        self.by_client = LineForecast(lambda request: request.client_id)
        self.in_one_line = LineForecast(lambda request: "")

    def enqueued(self, request: Request, now_s: float) -> None:
        """It waits."""
        self.by_client.enqueued(request, now_s)
        self.in_one_line.enqueued(request, now_s)

    def started(self, request: Request, now_s: float) -> None:
        """It runs."""
        self.by_client.started(request, now_s)
        self.in_one_line.started(request, now_s)

    def answered(self, request: Request, now_s: float) -> None:
        """It has its first token."""
        if request.admitted_s is not None and request.num_preemptions == 0:
            self.prefill.learn(request.num_prompt_tokens, now_s - request.admitted_s)

    def cancelled(self, request: Request, now_s: float) -> None:
        """It waits no more, and has not run."""
        self.by_client.cancelled(request, now_s)
        self.in_one_line.cancelled(request, now_s)

    def rest(self, request: Request, now_s: float) -> tuple[float, float]:
        """(seconds until it starts, seconds from then to its first token), of one that waits."""
        better = self.by_client if self.by_client.error <= self.in_one_line.error else self.in_one_line
        return better.wait_s(request, now_s), self.prefill(request.num_prompt_tokens)

    def check_integrity(self, never_run: Collection[Request]) -> None:
        """Assert that the lines hold those that wait."""
        self.by_client.check_integrity(never_run)
        self.in_one_line.check_integrity(never_run)
