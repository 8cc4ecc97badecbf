"""Named sets of configurations, run one after the other, resumable, within a budget.

A configuration whose result file exists is not run again. With a budget, configurations are taken in an order in which
every prefix is spread over compressors and layouts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError, EvenFlowError, RegistryError
from evenflow.comm import DEFAULT_SPECS
from evenflow.mcbench.config import RunConfig
from evenflow.mcbench.names import SUITES
from evenflow.mcbench.run import run
from evenflow.report.page import write_whole

PAPER = ("A1", "A2", "T1", "T2", "T3", "T4", "R1", "R2", "R3", "R4", "Q1", "Q2", "Q3", "P1", "P2")
LAYOUTS = ((4, 1), (2, 2), (1, 4))


def suite(name: str, seeds: int = 5) -> list[RunConfig]:
    """Return the configurations of a suite, dense ones first. Raises RegistryError."""
    if name not in SUITES:
        raise RegistryError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
    made = _paper(seeds) if name == "paper" else _modern(seeds)
    dense = [config for config in made if config.compress == "none"]
    return dense + _spread([config for config in made if config.compress != "none"])


def _paper(seeds: int) -> list[RunConfig]:
    """The paper's settings, layouts and places of compression; every task; scaled down, emulated."""
    configs = []
    # Auto-encoders of width 100 need a hidden size above it, as in the paper.
    base = RunConfig(emulate=True, seeds=seeds, hidden=128)
    for task in ("digits", "pairs", "chars"):
        for tp, pp in LAYOUTS:
            configs.append(replace(base, task=task, tp=tp, pp=pp))
            for setting in PAPER:
                spec = f"paper:{setting}"
                sites = {"tp.forward": tp > 1, "pp": pp > 1}
                rules = "; ".join(
                    f"{site}={spec}" + ("/one-shot" if setting[0] in "TRQ" and site[0] == "t" else "")
                    for site, on in sites.items()
                    if on
                )
                configs.append(replace(base, task=task, tp=tp, pp=pp, compress=rules))
        for setting in ("A2", "T3", "R3", "Q2", "P1"):
            spec = f"paper:{setting}" + ("/one-shot" if setting[0] in "TRQ" else "")
            for layers in ("all", "first-half", "4"):
                configs.append(replace(base, task=task, tp=4, compress=f"tp.forward={spec}", layers=layers))
            configs.append(replace(base, task=task, tp=4, compress=f"tp.forward={spec}", warmup_steps=100))
            configs.append(
                replace(
                    base, task=task, tp=4, compress=f"tp.forward=ef(paper:{setting})" + spec.removeprefix(f"paper:{setting}")
                )
            )
    return configs


def _modern(seeds: int) -> list[RunConfig]:
    """Every registered method, forward and in both directions, at TP 2."""
    configs = []
    base = RunConfig(emulate=True, seeds=seeds, tp=2, hidden=128)
    for task in ("digits", "chars"):
        configs.append(replace(base, task=task))
        for spec in DEFAULT_SPECS:
            if spec in ("none", "caat:0.5"):
                continue
            configs.append(replace(base, task=task, compress=f"tp.forward={spec}"))
            configs.append(replace(base, task=task, compress=f"tp={spec}"))
    return configs


def _spread(configs: list[RunConfig]) -> list[RunConfig]:
    """Return the same configurations in the order of a fixed hash: every prefix is a sample of all."""
    return sorted(configs, key=lambda config: config.key())


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a suite went."""

    done: int
    skipped: int
    failed: int
    left: int


def run_suite(
    configs: list[RunConfig],
    folder: str | Path,
    budget_s: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
    run_one: Callable[[RunConfig], dict[str, Any]] = run,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Run what has no result yet in ``folder``; write each result when it is there. A failure is noted and ends nothing."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    start, done, skipped, failed = clock(), 0, 0, 0
    for number, config in enumerate(configs):
        path = target / f"{config.key()}.json"
        if path.exists():
            skipped += 1
            continue
        if budget_s is not None and clock() - start > budget_s:
            return Outcome(done, skipped, failed, len(configs) - number)
        progress(f"[{number + 1}/{len(configs)}] {config.task} tp{config.tp} pp{config.pp} {config.compress} ({config.layers})")
        try:
            result = run_one(config)
        except EvenFlowError as error:
            failed += 1
            write_whole(target / f"{config.key()}.failed.json", _json({"parameters": config.to_json(), "error": str(error)}))
            progress(f"    failed: {error}")
            continue
        write_whole(path, _json(result))
        done += 1
        progress(f"    {result['metric']} {result[result['metric']]:.4f} ({result['wall_s']:.0f} s)")
    return Outcome(done, skipped, failed, 0)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def read_results(folder: str | Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (results, failures) of a folder. Raises ConfigError if there are none."""
    target = Path(folder)
    paths = sorted(target.glob("*.json")) if target.is_dir() else []
    results = [json.loads(path.read_text()) for path in paths]
    good = [result for result in results if isinstance(result, dict) and "metric" in result]
    if not good:
        raise ConfigError(f"{target} holds no results of `evenflow mcbench run` or `suite`")
    return good, [result for result in results if isinstance(result, dict) and "error" in result]


def read_studies(folder: str | Path) -> list[dict[str, Any]]:
    """Return the studies of a folder, possibly none."""
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("study-*.json"))]
