"""How quickly a run answered: the S-LoRA paper's measures exactly as its scripts compute them (its section 7.1).

A time to first token t counts against an objective (SLO, 6 s): attainment is 1 if t < SLO, satisfaction 1 - (t / SLO)^2;
both 0 otherwise, and 0 for whoever was turned away. Means are over all requests. Fairness between clients is measures.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evenflow.fairness.measures.runlog import RequestRecord

PAPER_SLO_S = 6.0
STRIP_S = 10.0
"""Cut off at either end for the strip throughput."""


@dataclass(frozen=True, slots=True)
class ServiceQuality:
    """One run. Times in seconds; None where no request has such a figure."""

    slo_ttft_s: float
    num_requests: int
    num_completed: int
    num_rejected: int
    """Turned away on arrival."""
    num_shed: int
    """Given up while they waited."""
    throughput_req_s: float
    """Completed requests over the whole time, ramp-down included."""
    strip_throughput_req_s: float | None
    """The same without the first and the last 10 s at the given rate: (n - 20 rate) / (T - 20); None if nothing is left."""
    slo_attainment: float
    satisfaction_mean: float
    satisfaction_p10: float
    satisfaction_p50: float
    ttft_mean_s: float | None
    ttft_p50_s: float | None
    ttft_p90_s: float | None
    latency_mean_s: float | None
    latency_per_token_s: float | None
    """Mean over requests of latency / (input + output tokens)."""
    latency_per_output_token_s: float | None


def attainment(ttft_s: float, slo_s: float = PAPER_SLO_S) -> float:
    """1 if the first token came within the objective, else 0."""
    return 1.0 if ttft_s < slo_s else 0.0


def satisfaction(ttft_s: float, slo_s: float = PAPER_SLO_S) -> float:
    """1 - (t / SLO)^2 within the objective, else 0."""
    return 1.0 - (ttft_s / slo_s) ** 2 if ttft_s < slo_s else 0.0


def measure_quality(
    records: Sequence[RequestRecord], total_s: float, *, rate: float | None = None, slo_s: float = PAPER_SLO_S
) -> ServiceQuality:
    """Quality of a run of ``total_s`` seconds. ``rate``: requests/s that were sent, for the strip; None: as they arrived.

    An unfinished request, or one without a first token, is not completed and counts as turned away in both means.
    """
    if rate is None:
        last_s = max((record.arrival_s for record in records), default=0.0)
        rate = len(records) / last_s if last_s > 0 else 0.0
    completed = [r for r in records if not r.is_refused and r.first_token_s is not None and r.finished_s is not None]
    ttfts = np.array([r.first_token_s - r.arrival_s for r in completed if r.first_token_s is not None])
    latencies = np.array([r.finished_s - r.arrival_s for r in completed if r.finished_s is not None])
    tokens = np.array([r.input_tokens + r.output_tokens for r in completed])
    output_tokens = np.array([max(r.output_tokens, 1) for r in completed])
    turned_away = [0.0] * (len(records) - len(completed))
    satisfied = np.array([satisfaction(float(t), slo_s) for t in ttfts] + turned_away)
    attained = [attainment(float(t), slo_s) for t in ttfts] + turned_away
    has_any = len(completed) > 0
    stripped, left_s = len(completed) - 2 * STRIP_S * rate, total_s - 2 * STRIP_S
    p10, p50 = (float(p) for p in np.percentile(satisfied, [10, 50])) if len(satisfied) else (0.0, 0.0)
    return ServiceQuality(
        slo_ttft_s=slo_s,
        num_requests=len(records),
        num_completed=len(completed),
        num_rejected=sum(r.is_rejected for r in records),
        num_shed=sum(r.is_shed for r in records),
        throughput_req_s=len(completed) / total_s if total_s > 0 else 0.0,
        strip_throughput_req_s=stripped / left_s if left_s > 0 and stripped > 0 else None,
        slo_attainment=float(np.mean(attained)) if attained else 0.0,
        satisfaction_mean=float(satisfied.mean()) if len(satisfied) else 0.0,
        satisfaction_p10=p10,
        satisfaction_p50=p50,
        ttft_mean_s=float(ttfts.mean()) if has_any else None,
        ttft_p50_s=float(np.percentile(ttfts, 50)) if has_any else None,
        ttft_p90_s=float(np.percentile(ttfts, 90)) if has_any else None,
        latency_mean_s=float(latencies.mean()) if has_any else None,
        latency_per_token_s=float((latencies / tokens).mean()) if has_any else None,
        latency_per_output_token_s=float((latencies / output_tokens).mean()) if has_any else None,
    )
