"""S-LoRA's experiments as values: which numbers of adapters, rates, skews and burstinesses each one runs, and for how long.

From its published suites; all of them draw prompts and outputs from [8, 512) tokens unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from evenflow.base.errors import RegistryError
from evenflow.bench.replay.slora_settings import SLoRASetting
from evenflow.bench.replay.slora_workload import Arrivals, slora_workload
from evenflow.bench.replay.trace import Trace


@dataclass(frozen=True, slots=True)
class SuitePoint:
    """One run of a suite."""

    num_adapters: int
    rate: float
    """Requests per second, all adapters together."""
    alpha: float = 1.0
    cv: float = 1.0
    duration_s: float = 300.0
    input_range: tuple[int, int] = (8, 512)
    output_range: tuple[int, int] = (8, 512)

    def workload(self, setting: SLoRASetting | None = None, arrivals: Arrivals = "merged") -> Trace:
        """Its requests, with the adapter names of the setting if one is given."""
        names = None if setting is None else [adapter.name for adapter in setting.adapters(self.num_adapters)]
        return slora_workload(
            self.num_adapters,
            rate=self.rate,
            alpha=self.alpha,
            cv=self.cv,
            duration_s=self.duration_s,
            input_range=self.input_range,
            output_range=self.output_range,
            arrivals=arrivals,
            adapter_names=names,
        )

    def scaled(self, *, rate: float = 1.0, duration_s: float | None = None, length: float = 1.0) -> SuitePoint:
        """For another machine: rate and lengths multiplied, another duration."""

        def shorter(ends: tuple[int, int]) -> tuple[int, int]:
            low = max(round(ends[0] * length), 1)
            return low, max(round(ends[1] * length), low + 1)

        return replace(
            self,
            rate=self.rate * rate,
            duration_s=self.duration_s if duration_s is None else duration_s,
            input_range=shorter(self.input_range),
            output_range=shorter(self.output_range),
        )


@dataclass(frozen=True, slots=True)
class Suite:
    """One experiment: points along one axis (the field of ``SuitePoint`` that differs)."""

    name: str
    axis: str
    points: tuple[SuitePoint, ...]
    settings: tuple[str, ...] = ("S1", "S2", "S4")
    """Settings that it was published for; where its name says none, those that fit one GPU."""


def _over(
    axis: str, values: Sequence[float], num_adapters: int, rate: float, duration_s: float = 300.0, **fixed: float
) -> tuple[SuitePoint, ...]:
    point = SuitePoint(num_adapters, rate, duration_s=duration_s, **fixed)  # type: ignore[arg-type]
    change: Callable[[float], SuitePoint] = lambda value: replace(point, **{axis: value})  # type: ignore[arg-type] # noqa: E731
    return tuple(change(value) for value in values)


_ALPHAS, _CVS, _A10G_NS = (0.1, 0.3, 0.6, 1.0), (1.0, 2.0, 4.0, 6.0, 8.0), (1, 20, 50, 100, 200)
_LONG = (512, 1024)

SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        suite.name: suite
        for suite in (
            Suite("ablation-no-mem", "num_adapters", _over("num_adapters", (1, 10, 25, 50, 100, 200), 0, 2.5)),
            Suite("ablation-cluster", "alpha", _over("alpha", _ALPHAS, 32, 2, 120), ("S2", "S4")),
            # published as alpha 1..8 at cv 8; its results are of cv 1..8 at alpha 1
            Suite("ablation-cluster-cv", "cv", _over("cv", _CVS, 32, 2, 120), ("S2", "S4")),
            Suite("a10g-num-adapter", "num_adapters", _over("num_adapters", _A10G_NS, 0, 2)),
            Suite("a10g-alpha", "alpha", _over("alpha", _ALPHAS, 200, 2)),
            Suite("a10g-cv", "cv", _over("cv", _CVS, 200, 2)),
            Suite("a10g-req-rate", "rate", _over("rate", (1, 1.5, 2, 2.5), 200, 0)),
            Suite("a100-40-num-adapter", "num_adapters", _over("num_adapters", (0, *_A10G_NS), 0, 2)),
            Suite("a100-40-num-adapter-short", "num_adapters", _over("num_adapters", (0, *_A10G_NS), 0, 2, 15)),
            Suite("a100-80-S2-num-adapter", "num_adapters", _over("num_adapters", _A10G_NS, 0, 10), ("S2",)),
            Suite("a100-80-S2-num-adapter-bmm", "num_adapters", _over("num_adapters", _A10G_NS, 0, 10, 30), ("S2",)),
            Suite("a100-80-S4-num-adapter", "num_adapters", _over("num_adapters", (0, 1, 100, 200, 400), 0, 6), ("S4",)),
            Suite("a100-80-S4-req-rate", "rate", _over("rate", (1, 2, 4, 6, 8), 400, 0), ("S4",)),
            Suite("a100-80-S4-cv", "cv", _over("cv", _CVS, 400, 6), ("S4",)),
            Suite("a100-80-S2-vllm", "num_adapters", _over("num_adapters", (5,), 0, 10, 120), ("S2",)),
            Suite("a100-80-table", "num_adapters", _over("num_adapters", (2, 5, 100, 1000, 2000), 0, 10, 120)),
            Suite("a100-80-table-s12-peft", "num_adapters", _over("num_adapters", (5, 100), 0, 10, 120), ("S1", "S2")),
            Suite("a100-80-table-s4-peft", "num_adapters", _over("num_adapters", (2, 100), 0, 6, 120), ("S4",)),
            Suite(
                "breakdown-h100",
                "num_adapters",
                _over("num_adapters", (1, 20, 50, 100, 200, 500, 1000), 0, 20, 60, alpha=0.8),
            ),
            Suite("breakdown-a10g", "num_adapters", _over("num_adapters", _A10G_NS, 0, 2, 60, alpha=0.8)),
            Suite(
                "merge",
                "num_adapters",
                tuple(SuitePoint(n, 2, duration_s=60, input_range=_LONG, output_range=_LONG) for n in (1, 2, 5)),
            ),
        )
    }
)
"""Every suite by name. The real-trace suites are rates 1, 2, 3, 4 of ``conversations.real_trace`` for 300 s (15 s: short)."""

REAL_RATES = (1.0, 2.0, 3.0, 4.0)


def suite(name: str) -> Suite:
    """The suite called ``name``. Raises RegistryError listing the known ones."""
    try:
        return SUITES[name]
    except KeyError:
        raise RegistryError(f"unknown suite {name!r}; known: {', '.join(SUITES)}") from None
