"""Step times from the times of requests, by going through the steps that the scheduler gave them.

A request's decode time is not a number of decode steps: while later requests of its batch are still in their prompts, its
steps carry their chunks too, and its prefill is several steps if the prompts together exceed one. So the shipped scheduler
replays the shape that was measured, and a request's times are sums over the steps it went through. Knows no engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evenflow.bench.replay.profiles import ServerSettings, StepTimeProfile
from evenflow.fairness import ClientQueues, create_policy
from evenflow.serving.core.plan import StepPlan
from evenflow.serving.core.request import ClientId, Request, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.engine.simulated import simulate


class Measured(Protocol):
    """Mean times of equal requests that were served at once."""

    @property
    def num_requests(self) -> int: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def prefill_s(self) -> float:
        """From its admission to its first token."""
        ...

    @property
    def decode_s(self) -> float:
        """From its first token to its last."""
        ...


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a fit agrees with what was measured."""

    rmse_ms: float
    median_relative: float
    """Of |fitted - measured| / measured."""
    worst_relative: float
    """The largest."""
    num_points: int


def fit_steps(points: Sequence[Measured], server: ServerSettings) -> tuple[StepTimeProfile, Fit]:
    """The step times that explain prefill and decode times alike; both count in the errors.

    ``server``: as it was when it was measured. A step takes base + more if it holds prompt tokens + what its sequences,
    context and prompt tokens take: the terms of ``StepTimeProfile``.
    """
    rows, taken_ms = [], []
    for point in points:
        prefill, decode = _walk(point, server)
        rows.append(prefill)
        taken_ms.append(1e3 * point.prefill_s)
        if point.output_tokens > 1:
            rows.append(decode)
            taken_ms.append(1e3 * point.decode_s)
    columns, values = np.array(rows), np.array(taken_ms)
    factors = non_negative(columns, values)
    base_s, more_s, sequence_s, context_s, token_s = (factor / 1e3 for factor in factors)
    profile = StepTimeProfile(
        decode_base_s=base_s,
        decode_sequence_s=sequence_s,
        context_token_s=context_s,
        prefill_base_s=base_s + more_s,
        prefill_token_s=token_s,
        adapter_bytes=0,  # Not measured, since the measured requests have no adapters.
        factor=1.0,
    )
    return profile, errors(columns @ np.array(factors), values)


def non_negative(columns: np.ndarray, values: np.ndarray) -> list[float]:
    """Least squares of the *relative* errors over factors that are not negative: the best of all sets of factors above zero.

    Short requests thus count as much as long ones. ``columns`` [n, k] with a small k, ``values`` [n] above 0.
    """
    scaled = columns / np.maximum(values, 1e-9)[:, None]
    # columns of one length: a step has one base and thousands of context tokens, which least squares would take for noise
    lengths = np.linalg.norm(scaled, axis=0)
    usable = [i for i, length in enumerate(lengths) if length > 1e-100]
    unit = scaled / np.where(lengths > 1e-100, lengths, 1.0)
    best, least = np.zeros(columns.shape[1]), float(len(values))
    for size in range(1, len(usable) + 1):
        for chosen in map(list, itertools.combinations(usable, size)):
            solved = np.linalg.lstsq(unit[:, chosen], np.ones(len(values)), rcond=None)[0]
            left = float(((unit[:, chosen] @ solved - 1) ** 2).sum())
            if (solved >= 0).all() and left < least:
                best, least = np.zeros(columns.shape[1]), left
                best[chosen] = solved / lengths[chosen]
    return best.tolist()


def errors(fitted_ms: np.ndarray, measured_ms: np.ndarray) -> Fit:
    """How far apart the two are."""
    difference = np.abs(fitted_ms - measured_ms)
    relative = difference / np.maximum(measured_ms, 1e-9)
    return Fit(float(np.sqrt((difference**2).mean())), float(np.median(relative)), float(relative.max()), len(measured_ms))


def _walk(point: Measured, server: ServerSettings) -> tuple[np.ndarray, np.ndarray]:
    """Steps, steps with prompt tokens, sequences, context tokens and prompt tokens that a request sees: to its first token,
    and from there to its last. Means over the requests.
    """
    steps: list[tuple[float, ...]] = [(0.0,) * 5]

    def count(plan: StepPlan) -> float:
        work = StepTimeProfile.work(plan)
        steps.append((1.0, float(work.prefill_tokens > 0), work.num_decoding, work.context_tokens, work.prefill_tokens))
        return 1.0

    num_tokens = point.input_tokens + point.output_tokens
    queues = ClientQueues()
    scheduler = server.scheduler(create_policy("fcfs", queues=queues, weights={}), queues, max_model_len=num_tokens)
    requests = [
        Request(
            RequestId(str(i)), ClientId("all"), [0] * point.input_tokens, GREEDY, 0.0, max_output_tokens=point.output_tokens
        )
        for i in range(point.num_requests)
    ]
    served = simulate(scheduler, requests, count).requests
    # every step takes one virtual second: a time is the number of steps that have ended
    total = np.cumsum(np.array(steps), axis=0)
    admitted, first, last = (
        total[[int(getattr(request, name)) for request in served]].mean(axis=0)
        for name in ("admitted_s", "first_token_s", "finished_s")
    )
    return first - admitted, last - first
