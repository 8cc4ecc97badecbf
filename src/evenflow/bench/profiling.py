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

from evenflow.bench.profiles import ServerSettings, StepTimeProfile
from evenflow.fairness.cost import ProfiledQuadratic


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


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a fit agrees with what was measured."""

    rmse_ms: float
    worst_relative: float
    """Largest |fitted - measured| / measured."""
    num_points: int


def measure(
    server: MeasuredServer,
    batch_sizes: Sequence[int],
    inputs: Sequence[int],
    outputs: Sequence[int],
    *,
    repeats: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> list[Point]:
    """Every combination, medians over repeats; one round before them warms up and is dropped."""
    combinations = list(itertools.product(batch_sizes, inputs, outputs))
    server.run(max(batch_sizes), min(inputs), min(outputs))
    points = []
    for done, (num_requests, input_tokens, output_tokens) in enumerate(combinations):
        samples = [server.run(num_requests, input_tokens, output_tokens) for _ in range(repeats)]
        prefill_s, decode_s = (statistics.median(column) for column in zip(*samples, strict=True))
        points.append(Point(num_requests, input_tokens, output_tokens, prefill_s, decode_s))
        if progress is not None:
            progress(done + 1, len(combinations))
    return points


def fit_cost(points: Sequence[Point]) -> tuple[ProfiledQuadratic, Fit]:
    """Least squares of h(x, y) in milliseconds over the points of the largest batch. Needs five points that differ."""
    full = max(point.num_requests for point in points)
    chosen = [point for point in points if point.num_requests == full]
    x = np.array([point.input_tokens for point in chosen], float)
    y = np.array([point.output_tokens for point in chosen], float)
    taken_ms = np.array([1e3 * (point.prefill_s + point.decode_s) for point in chosen])
    columns = np.stack([x, y, x * y, y * y, np.ones_like(x)], axis=1)
    factors = _non_negative(columns, taken_ms)
    return ProfiledQuadratic(*factors), _errors(columns @ np.array(factors), taken_ms)


def fit_steps(points: Sequence[Point]) -> tuple[StepTimeProfile, Fit]:
    """Step times: decode from all points with more than one output token, prefill from single requests.

    A decode step of B sequences that attend to C tokens in all: base + B x sequence + C x context.
    """
    decoding = [point for point in points if point.output_tokens > 1]
    step_ms = np.array([1e3 * point.decode_s / (point.output_tokens - 1) for point in decoding])
    batch = np.array([point.num_requests for point in decoding], float)
    context = batch * np.array([point.input_tokens + point.output_tokens / 2 for point in decoding])
    columns = np.stack([np.ones_like(batch), batch, context], axis=1)
    base, sequence, per_context = _non_negative(columns, step_ms)
    fit = _errors(columns @ np.array([base, sequence, per_context]), step_ms)
    alone = [point for point in points if point.num_requests == min(p.num_requests for p in points)]
    inputs = np.array([point.num_requests * point.input_tokens for point in alone], float)
    prefill_ms = np.array([1e3 * point.prefill_s for point in alone])
    prefill_base, per_token = _non_negative(np.stack([np.ones_like(inputs), inputs], axis=1), prefill_ms)
    profile = StepTimeProfile(
        decode_base_s=base / 1e3,
        decode_sequence_s=sequence / 1e3,
        context_token_s=per_context / 1e3,
        prefill_base_s=prefill_base / 1e3,
        prefill_token_s=per_token / 1e3,
        factor=1.0,
    )
    return profile, fit


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


def _non_negative(columns: np.ndarray, values: np.ndarray) -> list[float]:
    """Least squares without negative factors: a negative one is set to zero and the rest fitted again.

    Rows are weighted by 1 / value, so that short requests count as much as long ones.
    """
    weights = 1.0 / np.maximum(values, 1e-9)
    active = list(range(columns.shape[1]))
    factors = np.zeros(columns.shape[1])
    while active:
        solved = np.linalg.lstsq(columns[:, active] * weights[:, None], values * weights, rcond=None)[0]
        if (solved >= 0).all():
            factors[active] = solved
            break
        active.pop(int(np.argmin(solved)))
    return factors.tolist()


def _errors(fitted_ms: np.ndarray, measured_ms: np.ndarray) -> Fit:
    difference = np.abs(fitted_ms - measured_ms)
    return Fit(
        float(np.sqrt((difference**2).mean())), float((difference / np.maximum(measured_ms, 1e-9)).max()), len(measured_ms)
    )
