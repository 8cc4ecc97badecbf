"""Policies against each other on one trace: runs, their measures, and the JSON that keeps them."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evenflow.base.version import __version__
from evenflow.bench.replay.clients_file import ClientShares
from evenflow.bench.replay.profiles import ServerSettings
from evenflow.bench.replay.replay import Replay, replay
from evenflow.bench.replay.trace import Trace
from evenflow.fairness import CostFunction
from evenflow.fairness.measures.fairness_measures import MEASURES, Fairness, Windows, measure_run
from evenflow.fairness.measures.slo import PAPER_SLO_S, ServiceQuality, measure_quality
from evenflow.report.page import write_whole
from evenflow.serving.engine.simulated import StepTime


@dataclass(slots=True)
class PolicyRun:
    """One policy with one seed, seen through every measure."""

    policy: str
    seed: int
    by_measure: dict[str, Fairness]
    quality: ServiceQuality
    replay: Replay | None
    """The log, of the first seed only: plots need it, and it is large."""


@dataclass(slots=True)
class Comparison:
    """All runs on one trace (the first seed's, where seeds make traces)."""

    trace: Trace
    profile: str
    server: ServerSettings
    shed: str = "none"
    slo_ttft_s: float = PAPER_SLO_S
    runs: list[PolicyRun] = field(default_factory=list)

    @property
    def policies(self) -> list[str]:
        """In the order in which they were run."""
        return list(dict.fromkeys(run.policy for run in self.runs))

    def first(self, policy: str) -> PolicyRun:
        """The run of a policy whose log was kept."""
        return next(run for run in self.runs if run.policy == policy and run.replay is not None)

    def median_quality(self, policy: str, name: str) -> float | None:
        """Median over seeds of one figure of the service quality; None if a run has none."""
        values = [getattr(run.quality, name) for run in self.runs if run.policy == policy]
        return None if any(value is None for value in values) else statistics.median(values)

    def median(self, policy: str, measure: str, name: str) -> float | None:
        """Median over seeds of one figure; None if a run has none."""
        values = [getattr(run.by_measure[measure], name) for run in self.runs if run.policy == policy]
        return None if any(value is None for value in values) else statistics.median(values)


def compare(
    make_trace: Callable[[int], Trace],
    policies: Sequence[str],
    profile: str,
    server: ServerSettings,
    step_time: StepTime,
    *,
    seeds: Sequence[int] = (0,),
    shares: ClientShares | None = None,
    cost: CostFunction | None = None,
    shed: str = "none",
    slo_ttft_s: float | None = None,
    progress: Callable[[str, int, float, float], None] | None = None,
) -> Comparison:
    """Run every policy with every seed. ``progress`` is told policy, seed, virtual time and the last arrival's time.

    ``slo_ttft_s`` is what requests are shed by, and what attainment and satisfaction are measured against (None: 6 s).
    """
    traces = {seed: make_trace(seed) for seed in seeds}
    slo_s = PAPER_SLO_S if slo_ttft_s is None else slo_ttft_s
    default_slo_s = None if shed == "none" else slo_s
    comparison = Comparison(traces[seeds[0]], profile, server, shed, slo_s)
    for policy in policies:
        for seed in seeds:
            trace = traces[seed]

            def tell(time_s: float, policy: str = policy, seed: int = seed, end_s: float = trace.last_arrival_s) -> None:
                if progress is not None:
                    progress(policy, seed, time_s, end_s)

            done = replay(
                trace,
                policy,
                server,
                step_time,
                shares=shares,
                cost=cost,
                seed=seed,
                shed=shed,
                slo_ttft_s=default_slo_s,
                progress=tell,
            )
            windows = Windows(trace.horizon_s)
            by_measure = {measure: measure_run(done.log, measure, windows) for measure in MEASURES}
            quality = measure_quality(done.log.requests, done.log.total_s, slo_s=slo_s)
            comparison.runs.append(PolicyRun(policy, seed, by_measure, quality, done if seed == seeds[0] else None))
    return comparison


def to_json(comparison: Comparison) -> dict[str, Any]:
    """What was replayed (version, workload, profile, server, shedding, objective), and its results.

    ``runs``: one flat object per policy, seed and measure, ``paper`` first; ``quality``: one per policy and seed.
    """
    runs = []
    for run in comparison.runs:
        for measure in MEASURES:
            runs.append({"policy": run.policy, "seed": run.seed, **asdict(run.by_measure[measure])})
    quality: list[dict[str, object]] = [
        {"policy": run.policy, "seed": run.seed, "shed": comparison.shed, **asdict(run.quality)} for run in comparison.runs
    ]
    return {
        "evenflow": __version__,
        "workload": comparison.trace.name,
        "profile": comparison.profile,
        "server": asdict(comparison.server),
        "shed": comparison.shed,
        "slo_ttft_s": comparison.slo_ttft_s,
        "runs": runs,
        "quality": quality,
    }


def write_json(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write ``to_json``. Raises ConfigError with the path and the reason."""
    write_whole(path, (json.dumps(to_json(comparison), indent=1, allow_nan=False) + "\n").encode())
