"""Measuring a server: how long its requests and its steps take, fitted to what policies and replays need.

Two fits: the quadratic cost of a request (VTC's profiled cost function), measured as published, i.e. prefill plus decode
time of a request while the batch is full; and the step times of a ``StepTimeProfile``. Both come with their errors.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from evenflow.bench.profile.step_fit import Fit, errors, non_negative
from evenflow.bench.replay.profiles import ServerSettings, StepTimeProfile
from evenflow.fairness.books.cost import ProfiledQuadratic


class MeasuredServer(Protocol):
    """A server that can be timed."""

    def run(self, num_requests: int, input_tokens: int, output_tokens: int) -> tuple[float, float]:
        """Serve that many equal requests at once; mean (prefill, decode) seconds of a request."""
        ...


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement."""

    num_requests: int
    input_tokens: int
    output_tokens: int
    prefill_s: float
    decode_s: float
    samples: tuple[tuple[float, float], ...] = ()
    """(prefill, decode) seconds of every repeat; the times above are their medians."""


def measure(
    server: MeasuredServer,
    batch_sizes: Sequence[int],
    inputs: Sequence[int],
    outputs: Sequence[int],
    *,
    repeats: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> list[Point]:
    """Every combination, medians over repeats; one run before them warms up and is dropped.

    A repeat goes through all combinations, so that a slow minute of the machine hits one sample of each and not all of one.
    """
    combinations = list(itertools.product(batch_sizes, inputs, outputs))
    server.run(max(batch_sizes), min(inputs), min(outputs))
    samples: list[list[tuple[float, float]]] = [[] for _ in combinations]
    for repeat in range(repeats):
        for i, combination in enumerate(combinations):
            samples[i].append(server.run(*combination))
            if progress is not None:
                progress(repeat * len(combinations) + i + 1, repeats * len(combinations))
    points = []
    for combination, taken in zip(combinations, samples, strict=True):
        prefill_s, decode_s = (statistics.median(column) for column in zip(*taken, strict=True))
        points.append(Point(*combination, prefill_s, decode_s, tuple(taken)))
    return points


def disagreement(points: Sequence[Point]) -> float:
    """How far repeats of a shape are from its median, relative: the median over all of them. No fit does much better."""
    differences = []
    for point in points:
        for column, middle in zip(zip(*point.samples, strict=True), (point.prefill_s, point.decode_s), strict=False):
            if middle > 0:
                differences += [abs(value - middle) / middle for value in column]
    return statistics.median(differences) if differences else 0.0


def fit_cost(points: Sequence[Point]) -> tuple[ProfiledQuadratic, Fit]:
    """Least squares of h(x, y) in milliseconds over the points of the largest batch. Needs five points that differ."""
    full = max(point.num_requests for point in points)
    chosen = [point for point in points if point.num_requests == full]
    x = np.array([point.input_tokens for point in chosen], float)
    y = np.array([point.output_tokens for point in chosen], float)
    taken_ms = np.array([1e3 * (point.prefill_s + point.decode_s) for point in chosen])
    columns = np.stack([x, y, x * y, y * y, np.ones_like(x)], axis=1)
    factors = non_negative(columns, taken_ms)
    return ProfiledQuadratic(*factors), errors(columns @ np.array(factors), taken_ms)


def profile_toml(step_time: StepTimeProfile, server: ServerSettings, cost: ProfiledQuadratic, comment: str) -> str:
    """A profile file for ``evenflow replay --profile FILE``."""
    lines = [f"# {line}" for line in comment.splitlines()]
    lines += ["[step_time]", *(f"{name} = {value:.6g}" for name, value in asdict(step_time).items())]
    lines += ["[cost]", *(f"{name} = {value:.6g}" for name, value in asdict(cost).items())]
    lines += [f"[servers.{server.name}]"]
    for name, value in asdict(server).items():
        if name != "name":
            lines.append(f"{name} = {str(value).lower()}")
    return "\n".join(lines) + "\n"
