"""Run suites, round by round and variant by variant, into one JSON document that grows and can be continued."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.base.progress import Tell, tell_nobody
from evenflow.bench.harness import result_document
from evenflow.bench.lora.methods import ByTheClock, FixedSet, Footprint, Measuring, Method, Operators, Saturated
from evenflow.bench.lora.settings import setting
from evenflow.bench.lora.suites import Case, LoRASuite
from evenflow.bench.lora.variant_names import PEERS, check_variant
from evenflow.report.page import write_whole
from evenflow.serving.client.environment import engine_environment
from evenflow.serving.config.engine_config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAOptions:
    """What one document is measured with; a document is continued only with the same."""

    setting: str = "135m"
    dtype: str = "auto"
    device: str = "cpu"
    max_num_seqs: int = 16
    max_batch_tokens: int = 512
    num_threads: int | None = None

    def __post_init__(self) -> None:
        setting(self.setting)
        EngineConfig(
            model=Path(),
            dtype=self.dtype,
            device=self.device,
            max_num_seqs=self.max_num_seqs,
            max_batch_tokens=self.max_batch_tokens,
            num_threads=self.num_threads,
        )


@dataclass(slots=True)
class SampleCounts:
    """How far a run got."""

    measured: int = 0
    kept: int = 0
    """Samples that the document had already."""
    left: int = 0
    """For which the budget was not enough."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Planned:
    """One sample to take."""

    suite: LoRASuite
    round_number: int
    case: Case
    variant: str


def plan_samples(suites: Sequence[LoRASuite], variants: Sequence[str], rounds: int | None) -> list[Planned]:
    """All samples in the order in which they are taken: rounds outermost within a suite.

    Raises RegistryError or ConfigError for an unknown variant, and for a peer in a suite that it cannot serve.
    """
    planned = []
    for suite in suites:
        for round_number in range(suite.rounds if rounds is None else rounds):
            for case in suite.cases:
                for name in variants or case.variants or suite.variants:
                    check_variant(name)
                    if name in PEERS and suite.method != "fixed":
                        raise ConfigError(
                            f"variant {name!r} serves fixed sets of requests only (suite merge), not {suite.name!r}"
                        )
                    planned.append(Planned(suite, round_number, case, name))
    return planned


class SuiteRun:
    """Takes samples and keeps the document at ``path``."""

    def __init__(self, path: Path, options: LoRAOptions, cache_dir: Path) -> None:
        self._path = path
        self._options = options
        self._cache_dir = cache_dir
        self.document = self._read()
        self._measuring: Measuring | None = None
        self._lora_ranks: tuple[int, ...] = ()
        self._num_adapters = -1

    def run(self, planned: Sequence[Planned], budget_s: float | None = None, tell: Tell = tell_nobody) -> SampleCounts:
        """Take what the document lacks; writes it after every sample, and stops before a sample beyond the budget."""
        counts, started_s = SampleCounts(), time.monotonic()
        suite: LoRASuite | None = None
        method: Method | None = None
        try:
            for done, sample in enumerate(planned):
                if self._has(sample):
                    counts.kept += 1
                    continue
                if budget_s is not None and time.monotonic() - started_s > budget_s:
                    counts.left += 1
                    continue
                tell(f"{sample.suite.name} {sample.case.label} {sample.variant}", done, len(planned))
                if sample.suite is not suite or method is None:
                    if method is not None:
                        method.close()
                    suite, method = sample.suite, self._method(sample.suite.method)
                    self._lora_ranks, self._num_adapters = (), -1
                self._open(sample)
                assert self._measuring is not None
                taken = method.sample(self._measuring, sample.case, sample.variant, sample.round_number)
                if taken is not None:
                    self._keep(sample, taken)
                    counts.measured += 1
        finally:
            if method is not None:
                method.close()
            if self._measuring is not None:
                self._measuring.close()
                self._measuring = None
        return counts

    def _method(self, name: str) -> Method:
        methods: Mapping[str, Callable[[], Method]] = {
            "saturated": Saturated,
            "clock": ByTheClock,
            "footprint": Footprint,
            "operators": Operators,
            "fixed": lambda: FixedSet(self._options.setting, self._cache_dir, self._options.dtype),
        }
        return methods[name]()

    def _open(self, sample: Planned) -> None:
        """See to it that the process stands on the adapters that the sample needs."""
        options = self._options
        if self._measuring is None:
            config = EngineConfig(model=Path(), num_threads=options.num_threads)
            self._measuring = Measuring(engine_environment(config, os.environ))
            self._lora_ranks, self._num_adapters = (), -1
        lora_ranks, num_adapters = sample.case.lora_ranks, sample.suite.num_adapters
        if (lora_ranks, num_adapters) == (self._lora_ranks, self._num_adapters):
            return
        opened = self._measuring(
            "open",
            setting=options.setting,
            cache_dir=str(self._cache_dir),
            num_adapters=num_adapters,
            dtype=options.dtype,
            device=options.device,
            lora_ranks=list(lora_ranks) or None,
            max_num_seqs=options.max_num_seqs,
            max_batch_tokens=options.max_batch_tokens,
        )
        self._measuring.runs.clear()
        self._lora_ranks, self._num_adapters = lora_ranks, num_adapters
        of_suite = self._of_suite(sample.suite)
        of_suite["opened"] = opened
        of_suite.setdefault("bandwidth", []).append(self._measuring("bandwidth"))

    def _of_suite(self, suite: LoRASuite) -> dict[str, Any]:
        results: dict[str, Any] = self.document["results"]
        return results.setdefault(suite.name, {"axis": suite.axis, "text": suite.text, "method": suite.method, "cases": {}})

    def _has(self, sample: Planned) -> bool:
        cases = self.document["results"].get(sample.suite.name, {}).get("cases", {})
        taken = cases.get(sample.case.label, {}).get("samples", {}).get(sample.variant, [])
        return any(one["round"] == sample.round_number for one in taken)

    def _keep(self, sample: Planned, taken: Mapping[str, Any]) -> None:
        case = sample.case
        served = {"memory": case.memory, "policy": case.policy, "shed": case.shed}
        described = {"x": case.x, "point": asdict(case.point), **served, "samples": {}}
        entry = self._of_suite(sample.suite)["cases"].setdefault(case.label, described)
        entry["samples"].setdefault(sample.variant, []).append({"round": sample.round_number, **taken})
        write_whole(self._path, (json.dumps(self.document) + "\n").encode())

    def _read(self) -> dict[str, Any]:
        parameters = asdict(self._options)
        if not self._path.exists():
            return result_document("lora", parameters, {})
        try:
            document: dict[str, Any] = json.loads(self._path.read_text())
            same = document["scenario"] == "lora" and document["parameters"] == parameters
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{self._path} is no result of this benchmark; name another file, or remove it") from None
        if not same:
            raise ConfigError(
                f"{self._path} was measured with {document.get('parameters')}; now it is {parameters}: name another file"
            )
        return document


__all__ = ["LoRAOptions", "Planned", "SampleCounts", "SuiteRun", "plan_samples"]
