"""From a point of a suite to requests: S-LoRA's generator, by the clock or without end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from evenflow.bench.replay.slora_suites import SuitePoint
from evenflow.bench.replay.slora_workload import PAPER_SEED, slora_workload
from evenflow.bench.replay.trace import Trace, TraceRow


def point_of(values: Mapping[str, Any]) -> SuitePoint:
    """A point that has been through JSON."""
    known = {field.name for field in fields(SuitePoint)}
    return SuitePoint(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})  # type: ignore[arg-type]


def trace_of(point: SuitePoint, seed: int) -> Trace:
    """The point's requests; adapters are called by their number in the pool. ``seed`` 0 is the paper's."""
    return slora_workload(
        point.num_adapters,
        rate=point.rate,
        alpha=point.alpha,
        cv=point.cv,
        duration_s=point.duration_s,
        input_range=point.input_range,
        output_range=point.output_range,
        seed=PAPER_SEED + seed,
        adapter_names=[str(i) for i in range(point.num_adapters)],
    )


def endless(point: SuitePoint, seed: int) -> Iterator[TraceRow]:
    """The point's adapters and lengths for ever; arrival times mean nothing.

    Lengths are the same for every number of adapters and every popularity (the generator draws them apart): what runs
    beside each other differs in its adapters alone.
    """
    while True:
        yield from trace_of(replace(point, rate=1000.0, duration_s=2.0, cv=1.0), seed)
        seed += 1


__all__ = ["endless", "point_of", "trace_of"]
