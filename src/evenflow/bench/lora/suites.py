"""The LoRA experiments as values: S-LoRA's figures and ablations, sized for the machine at hand.

A suite has cases (points along one axis); every case is measured with every variant, round by round, so that a slow
minute hits all of them. How a case is measured is its suite's method (``methods``). Lengths are a quarter of the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from evenflow.base.errors import RegistryError
from evenflow.bench.replay.slora_suites import SuitePoint

LENGTH = 0.25
"""Prompts and outputs of [2, 128) tokens instead of [8, 512)."""

_POINT = SuitePoint(200, rate=3.0, duration_s=30.0).scaled(length=LENGTH)


@dataclass(frozen=True, slots=True)
class Case:
    """One point of a suite."""

    label: str
    x: float
    point: SuitePoint
    memory: str = "704MiB"
    policy: str = "fcfs"
    shed: str = "none"
    """Which waiting requests are given up; the objective is the paper's 6 s."""
    variants: tuple[str, ...] = ()
    """Instead of the suite's."""
    lora_ranks: tuple[int, ...] = ()
    """Instead of the setting's."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What only this suite's method knows."""


@dataclass(frozen=True, slots=True)
class LoRASuite:
    """One experiment. ``method`` names how its cases are measured: a key of ``SuiteRun._method``."""

    name: str
    text: str
    method: str
    axis: str
    cases: tuple[Case, ...]
    variants: tuple[str, ...] = ("unified",)
    rounds: int = 3
    is_log_x: bool = False

    @property
    def num_adapters(self) -> int:
        """The most that any case needs."""
        return max(case.point.num_adapters for case in self.cases)


def _over(axis: str, values: Sequence[float], point: SuitePoint, **of_case: Any) -> tuple[Case, ...]:
    return tuple(Case(f"{value:g}", value, replace(point, **{axis: value}), **of_case) for value in values)  # type: ignore[arg-type]


_SKEWED = (8,) * 15 + (64,)
"""Adapters 0 to 14 and 16 have rank 8, adapter 15 has rank 64."""

_SITES = (("qkv", 16, 16), ("qkv", 16, 4), ("qkv", 16, 1), ("qkv", 1, 1), ("o", 16, 16), ("o", 16, 1))


def _operator(x: int, site: str, rows: int, num_adapters: int) -> Case:
    label = f"{site}, {rows} row{'s' * (rows > 1)}, {num_adapters} adapter{'s' * (num_adapters > 1)}"
    return Case(label, x, replace(_POINT, num_adapters=num_adapters), settings={"site": site, "rows": rows})


def _clustered(limit: int) -> Case:
    policy = "fcfs" if limit == 32 else f"cluster:{limit}+fcfs"
    return Case(str(limit), limit, replace(_POINT, num_adapters=32, rate=4.5), "160MiB", policy)


def _taxed(lora_rank: int, adapter: int) -> Case:
    """S2's first four adapters have these ranks."""
    if adapter < 0:
        return Case(str(lora_rank), lora_rank, replace(_POINT, num_adapters=0))
    return Case(str(lora_rank), lora_rank, replace(_POINT, num_adapters=4), settings={"adapter": str(adapter)})


_SHEDDING = (("fcfs", "none"), ("lcfs", "none"), ("lcfs-overload", "paper"), ("fcfs", "predict"))


def _shedding(rate: float, policy: str, shed: str) -> Case:
    label = f"{rate:g}, {policy}" + (f", {shed}" if shed != "none" else "")
    return Case(label, rate, replace(_POINT, rate=rate, cv=2.0), policy=policy, shed=shed)


def _skewed(lora_rank: int, last: int) -> Case:
    point = replace(_POINT, num_adapters=17)
    return Case(str(lora_rank), lora_rank, point, lora_ranks=_SKEWED, settings={"batch": (*range(15), last)})


SUITES: Mapping[str, LoRASuite] = MappingProxyType(
    {
        suite.name: suite
        for suite in (
            LoRASuite(
                "adapters",
                "Saturated: throughput and adapter traffic by number of distinct adapters (table 3, figures 4 and 5).",
                "saturated",
                "distinct adapters",
                _over("num_adapters", (0, 1, 5, 128, 500, 1000, 2000), _POINT),
                rounds=40,
                is_log_x=True,
            ),
            LoRASuite(
                "tax",
                "Saturated: from the base model to one adapter, for each of the ranks.",
                "saturated",
                "rank of the only adapter (0: base)",
                tuple(_taxed(lora_rank, i) for i, lora_rank in ((-1, 0), (3, 8), (2, 16), (1, 32), (0, 64))),
                rounds=20,
            ),
            LoRASuite(
                "variants",
                "Saturated: the shipped engine against its ablations.",
                "saturated",
                "distinct adapters",
                _over("num_adapters", (1, 5, 128), _POINT),
                ("unified", "none", "slots", "padded", "gather"),
                rounds=12,
                is_log_x=True,
            ),
            LoRASuite(
                "adapters-slo",
                "By the clock: first tokens and satisfaction by number of adapters.",
                "clock",
                "distinct adapters",
                _over("num_adapters", (1, 5, 128, 2000), _POINT),
                is_log_x=True,
            ),
            LoRASuite(
                "rate",
                "By the clock: throughput, first tokens and satisfaction by request rate (figure 5).",
                "clock",
                "requests/s",
                _over("rate", (2.0, 3.0, 4.0, 5.0), _POINT),
                ("unified", "slots"),
            ),
            LoRASuite(
                "alpha",
                "By the clock: by popularity of adapters, 1 is uniform.",
                "clock",
                "alpha",
                _over("alpha", (0.1, 0.3, 0.6, 1.0), _POINT),
            ),
            LoRASuite(
                "cv",
                "By the clock: by burstiness of arrivals.",
                "clock",
                "coefficient of variation",
                _over("cv", (1.0, 2.0, 4.0, 8.0), _POINT),
            ),
            LoRASuite(
                "clustering",
                "By the clock, memory short: limits on the distinct adapters of a batch (figure 9).",
                "clock",
                "distinct adapters in the batch (32: no limit)",
                tuple(_clustered(limit) for limit in (1, 2, 4, 8, 32)),
            ),
            LoRASuite(
                "abort",
                "By the clock, overloaded: giving up on requests that would come too late (figure 10).",
                "clock",
                "requests/s",
                tuple(_shedding(rate, policy, shed) for rate in (6.0, 9.0) for policy, shed in _SHEDDING),
            ),
            LoRASuite(
                "merge",
                "A fixed set of requests: weights merged, peft, and the shipped engine, by number of adapters (figure 7).",
                "fixed",
                "distinct adapters",
                _over("num_adapters", (1, 4, 16), _POINT),
                ("unified", "merged:16", "peft", "peft-names"),
            ),
            LoRASuite(
                "memory",
                "Saturated, memory short: one arena against a fixed split and against slots of the same bytes (figure 4).",
                "saturated",
                "distinct adapters",
                _over("num_adapters", (25, 100, 200), _POINT, memory="96MiB"),
                ("unified", "partitioned:0.25", "partitioned:0.5", "partitioned:0.75", "slots:8"),
                rounds=10,
            ),
            LoRASuite(
                "footprint",
                "What adapters and process hold, whatever the mix of ranks.",
                "footprint",
                "ranks",
                tuple(
                    Case("/".join(map(str, lora_ranks)), i, replace(_POINT, num_adapters=60), lora_ranks=lora_ranks)
                    for i, lora_ranks in enumerate(((1,), (8,), (64,), (64, 32, 16, 8), (1, 3, 5, 7, 33, 64)))
                ),
                rounds=1,
            ),
            LoRASuite(
                "ranks",
                "Rank skew: 15 requests with adapters of rank 8 and one of rank 8, then 64 (LoRAServe's case).",
                "saturated",
                "rank of the sixteenth adapter",
                (_skewed(8, 16), _skewed(64, 15)),
                ("unified", "slots", "padded"),
                rounds=20,
            ),
            LoRASuite(
                "operators",
                "LoRA of one site and layer, decode: the shipped row kernel against the others' ways.",
                "operators",
                "case",
                tuple(_operator(i, *what) for i, what in enumerate(_SITES)),
                ("unified", "slots", "padded", "gather", "loop"),
                rounds=1,
            ),
        )
    }
)
"""Every suite by name."""


def suite(name: str) -> LoRASuite:
    """The suite called ``name``. Raises RegistryError listing the known ones."""
    try:
        return SUITES[name]
    except KeyError:
        raise RegistryError(f"unknown suite {name!r}; known: {', '.join(SUITES)}") from None


__all__ = ["LENGTH", "SUITES", "Case", "LoRASuite", "suite"]
