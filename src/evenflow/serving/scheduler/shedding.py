"""Which waiting requests are given up because their first token would come too late. Decides by time, never by order.

Early abort in S-LoRA's words (its section 4.3): under overload it is better to answer some in time than all too late. Only
requests that have never run are given up; whoever has been admitted is served to the end. A request's objective (SLO, for
its time to first token) is its own or the server's default; without one it waits as long as it takes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.serving.core.request import Request, RequestState
from evenflow.serving.scheduler.forecast import FirstTokenForecast

PAPER_SLO_S = 6.0
PAPER_GUARD_S = 0.5


@dataclass(frozen=True, slots=True)
class Overdue:
    """A waiting request to be given up."""

    request: Request
    slo_ttft_s: float
    predicted_ttft_s: float
    """From its arrival."""
    retry_after_s: float
    """After which another attempt may be worth it."""


class Shedding(Protocol):
    """Asked before requests are admitted. Told of every request, with or without an objective."""

    @property
    def keeps_slos(self) -> bool:
        """False: a request with an objective of its own is refused, because nobody would look at it."""
        ...

    def enqueued(self, request: Request, now_s: float) -> None:
        """It waits, for the first time."""
        ...

    def started(self, request: Request, now_s: float) -> None:
        """It runs, for the first time."""
        ...

    def answered(self, request: Request, now_s: float) -> None:
        """It has its first token."""
        ...

    def cancelled(self, request: Request, now_s: float) -> None:
        """It has left the queue without having run: aborted, or given up."""
        ...

    def overdue(self, now_s: float) -> Sequence[Overdue]:
        """Requests to give up now. They wait, each is named once, and ``cancelled`` follows."""
        ...

    def check_integrity(self, never_run: Collection[Request]) -> None:
        """Assert the books against the waiting requests that have never run."""
        ...


class NoShedding:
    """Everybody is served, however late."""

    keeps_slos = False

    def enqueued(self, request: Request, now_s: float) -> None:
        """Do nothing."""

    def started(self, request: Request, now_s: float) -> None:
        """Do nothing."""

    def answered(self, request: Request, now_s: float) -> None:
        """Do nothing."""

    def cancelled(self, request: Request, now_s: float) -> None:
        """Do nothing."""

    def overdue(self, now_s: float) -> Sequence[Overdue]:
        """Nobody."""
        return ()

    def check_integrity(self, never_run: Collection[Request]) -> None:
        """Nothing to check."""


class PaperShedding:
    """S-LoRA's early abort: given up when waited + guard >= SLO, published with 6 s and a guard of 0.5 s for the prefill.

    Its order of service is a policy, ``lcfs-overload``; with any other policy this is the rule alone.
    """

    keeps_slos = True

    def __init__(self, slo_ttft_s: float = PAPER_SLO_S, guard_s: float = PAPER_GUARD_S) -> None:
        self._slo_ttft_s = slo_ttft_s
        self._guard_s = guard_s
        self._agenda = Agenda()

    def enqueued(self, request: Request, now_s: float) -> None:
        """Note when it will be too late."""
        self._agenda.add(request.arrival_s + self._slo_of(request) - self._guard_s, request)

    def started(self, request: Request, now_s: float) -> None:
        """Made it."""
        self._agenda.drop()

    def answered(self, request: Request, now_s: float) -> None:
        """Do nothing: the guard is a constant."""

    def cancelled(self, request: Request, now_s: float) -> None:
        """Forget it."""
        self._agenda.drop()

    def overdue(self, now_s: float) -> Sequence[Overdue]:
        """Those that have waited too long. O(log n) each."""
        found = []
        for request in self._agenda.due(now_s):
            slo_s, predicted_s = self._slo_of(request), now_s - request.arrival_s + self._guard_s
            found.append(Overdue(request, slo_s, predicted_s, retry_after_s=max(slo_s, 1.0)))
        return found

    def check_integrity(self, never_run: Collection[Request]) -> None:
        """Assert that everybody who waits is on the agenda."""
        assert {id(request) for request in self._agenda.waiting()} == {id(request) for request in never_run}

    def _slo_of(self, request: Request) -> float:
        return self._slo_ttft_s if request.slo_ttft_s is None else request.slo_ttft_s


class PredictiveShedding:
    """Given up as soon as waited + ``margin`` x predicted rest > SLO, as a rule on arrival and not after a wait in vain.

    The prediction is calibrated on this server's own past (forecast.py). It is looked at on arrival, four times on the way
    to the objective, and at the last moment at which a prefill can still make it. It takes a client's requests to be
    served in order: with a newest-first policy use the paper's rule.
    """

    keeps_slos = True

    def __init__(self, slo_ttft_s: float | None = None, margin: float = 1.0) -> None:
        self._slo_ttft_s = slo_ttft_s
        self._margin = margin
        self.forecast = FirstTokenForecast()
        self._agenda = Agenda()

    def enqueued(self, request: Request, now_s: float) -> None:
        """Join the line; look at it at once."""
        self.forecast.enqueued(request, now_s)
        if self._slo_of(request) is not None:
            self._agenda.add(now_s, request)

    def started(self, request: Request, now_s: float) -> None:
        """Learn how long it waited."""
        self.forecast.started(request, now_s)
        if self._slo_of(request) is not None:
            self._agenda.drop()

    def answered(self, request: Request, now_s: float) -> None:
        """Learn how long its prompt took."""
        self.forecast.answered(request, now_s)

    def cancelled(self, request: Request, now_s: float) -> None:
        """Leave the line."""
        self.forecast.cancelled(request, now_s)
        if self._slo_of(request) is not None:
            self._agenda.drop()

    def overdue(self, now_s: float) -> Sequence[Overdue]:
        """Those looked at now that cannot make it; the others are put back for another look."""
        found = []
        for request in self._agenda.due(now_s):
            slo_s = self._slo_of(request)
            assert slo_s is not None
            waited_s = now_s - request.arrival_s
            wait_s, prefill_s = self.forecast.rest(request, now_s)
            predicted_s = waited_s + self._margin * (wait_s + prefill_s)
            if predicted_s > slo_s or waited_s >= slo_s:
                found.append(Overdue(request, slo_s, predicted_s, retry_after_s=max(predicted_s - slo_s, 1.0)))
            else:
                last_moment_s = request.arrival_s + slo_s - self._margin * prefill_s
                self._agenda.add(min(now_s + slo_s / 4, max(last_moment_s, now_s + slo_s / 100)), request)
        return found

    def check_integrity(self, never_run: Collection[Request]) -> None:
        """Assert the forecast's lines, and that everybody with an objective is on the agenda."""
        self.forecast.check_integrity(never_run)
        timed = {id(request) for request in never_run if self._slo_of(request) is not None}
        assert {id(request) for request in self._agenda.waiting()} == timed

    def _slo_of(self, request: Request) -> float | None:
        return self._slo_ttft_s if request.slo_ttft_s is None else request.slo_ttft_s


class Agenda:
    """Waiting requests by the time at which they are to be looked at. Those that left are swept now and then."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._num_added = 0
        self._num_dropped = 0

    def add(self, at_s: float, request: Request) -> None:
        """Look at a waiting request at this time. Each is on the agenda at most once."""
        self._num_added += 1
        heapq.heappush(self._heap, (at_s, self._num_added, request))

    def drop(self) -> None:
        """One on the agenda waits no more (which one, its state says). O(1) amortised."""
        self._num_dropped += 1
        if self._num_dropped > 64 and 2 * self._num_dropped > len(self._heap):
            self._heap = [entry for entry in self._heap if has_never_run(entry[2])]
            heapq.heapify(self._heap)
            self._num_dropped = 0

    def due(self, now_s: float) -> list[Request]:
        """Take off those whose time has come and who still wait."""
        found = []
        while self._heap and self._heap[0][0] <= now_s:
            request = heapq.heappop(self._heap)[2]
            if has_never_run(request):
                found.append(request)
        return found

    def waiting(self) -> list[Request]:
        """Those on it that still wait."""
        return [request for _, _, request in self._heap if has_never_run(request)]


def has_never_run(request: Request) -> bool:
    """It waits, and not because it was preempted."""
    return request.state is RequestState.WAITING and request.admitted_s is None


def _none(argument: str | None, slo_ttft_s: float | None) -> Shedding:
    if argument is not None:
        raise RegistryError(f"shedding 'none' takes no argument, got {argument!r}")
    if slo_ttft_s is not None:
        raise ConfigError(f"an SLO of {slo_ttft_s:g} s with shedding 'none': nobody would keep it; allowed: paper, predict")
    return NoShedding()


def _paper(argument: str | None, slo_ttft_s: float | None) -> Shedding:
    guard_s = _number(argument, PAPER_GUARD_S)
    slo_s = PAPER_SLO_S if slo_ttft_s is None else slo_ttft_s
    if not 0 <= guard_s < slo_s:
        raise RegistryError(f"paper takes a guard in seconds, from 0 to below the SLO of {slo_s:g} s, got {argument!r}")
    return PaperShedding(slo_s, guard_s)


def _predict(argument: str | None, slo_ttft_s: float | None) -> Shedding:
    margin = _number(argument, 1.0)
    if not 0 < margin < math.inf:
        raise RegistryError(f"predict takes a margin above 0 that the prediction is multiplied by, got {argument!r}")
    return PredictiveShedding(slo_ttft_s, margin)


def _number(argument: str | None, default: float) -> float:
    try:
        return default if argument is None else float(argument)
    except ValueError:
        return math.nan


SHEDDINGS: dict[str, Callable[[str | None, float | None], Shedding]] = {"none": _none, "paper": _paper, "predict": _predict}
"""By name; each takes what followed the colon, and the server's default objective in seconds."""


def create_shedding(spec: str, slo_ttft_s: float | None = None) -> Shedding:
    """``none``, ``paper[:GUARD_S]`` or ``predict[:MARGIN]``. Raises RegistryError or ConfigError saying what is allowed."""
    name, colon, argument = spec.partition(":")
    if name.strip() not in SHEDDINGS:
        raise RegistryError(f"unknown shedding {name!r}; known: {', '.join(SHEDDINGS)}")
    if slo_ttft_s is not None and not 0 < slo_ttft_s < math.inf:
        raise ConfigError(f"the SLO for the first token is {slo_ttft_s} s; allowed: finite and above 0")
    return SHEDDINGS[name.strip()](argument.strip() if colon else None, slo_ttft_s)
