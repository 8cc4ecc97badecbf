"""When requests come: rates that change over time, turned into evenly spaced or Poisson arrivals.

Every pattern of the papers (constant, on/off, ramp, phases, burst) is one piecewise linear rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests per second over time, linear between the points; a step is two points at one time; 0 outside them."""

    points: tuple[tuple[float, float], ...]
    """(seconds, requests per second), times not decreasing."""

    def arrivals(self, rng: np.random.Generator, *, is_poisson: bool) -> np.ndarray:
        """Arrival times in seconds: evenly spaced in expected requests with a random phase, or a Poisson process."""
        times, rates = np.array(self.points, float).T
        gained = np.concatenate([[0.0], np.cumsum(np.diff(times) * (rates[1:] + rates[:-1]) / 2)])
        total = float(gained[-1])
        if is_poisson:
            marks = np.sort(rng.uniform(0.0, total, rng.poisson(total)))
        else:
            marks = np.minimum(np.arange(int(total + 1e-6)) + rng.uniform(), total)
        segment = np.clip(np.searchsorted(gained, marks, side="right") - 1, 0, len(times) - 2)
        need, rate = marks - gained[segment], rates[segment]
        width = np.diff(times)[segment]
        slope = np.divide(np.diff(rates)[segment], width, out=np.zeros_like(width), where=width > 0)
        # rate tau + slope tau^2 / 2 = need, in the form that has no cancellation
        root = rate + np.sqrt(np.maximum(rate * rate + 2 * slope * need, 0.0))
        return times[segment] + np.divide(2 * need, root, out=np.zeros_like(need), where=root > 0)


def constant(rate: float, end_s: float, start_s: float = 0.0) -> Rate:
    """The same rate from start to end."""
    return Rate(((start_s, rate), (end_s, rate)))


def ramp(first: float, last: float, end_s: float) -> Rate:
    """From one rate to another in a straight line."""
    return Rate(((0.0, first), (end_s, last)))


def on_off(rate: float, end_s: float, period_s: float = 60.0, start_s: float = 0.0) -> Rate:
    """The rate in even periods, nothing in odd ones."""
    points: list[tuple[float, float]] = []
    time_s, is_on = start_s, True
    while time_s < end_s:
        until = min(time_s + period_s, end_s)
        level = rate if is_on else 0.0
        points += [(time_s, level), (until, level)]
        time_s, is_on = until, not is_on
    return Rate(tuple(points))


def phases(*rates: Rate) -> Rate:
    """One rate after the other (each begins where the one before ends)."""
    return Rate(tuple(point for rate in rates for point in rate.points))


def burst(at_s: float, num_requests: int) -> Rate:
    """All requests within a millisecond."""
    return Rate(((at_s, num_requests * 1e3), (at_s + 1e-3, num_requests * 1e3)))
