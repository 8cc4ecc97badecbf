"""Time training steps of several configurations side by side, and the same steps without any communication.

All variants live in the same ranks and take turns, A B C A B C, so that a slow minute of the machine hits all of them.
Nothing is trained to an end and nothing evaluated: steps are timed, bytes counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from evenflow.base.errors import ConfigError, WireError
from evenflow.comm import Collective, SilentCollective
from evenflow.comm.collectives.links import Link
from evenflow.mcbench.runs.build import MeshGroups, task_of
from evenflow.mcbench.runs.launch import launch
from evenflow.mcbench.runs.measure import measure
from evenflow.mcbench.runs.rank_worker import ledger_of, make_trainee
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.runs.trainer import ModelTrainee


def compute_s(config: RunConfig, steps: int = 15) -> float:
    """Return the median seconds of a step whose tensor-parallel exchanges send nothing. Raises WireError, ConfigError.

    All ranks compute at the same time, uncompressed, and throw their (wrong) results away. A barrier stands in the place of
    each exchange. Waiting there for a slower rank counts as computation, as it does in training; the barrier's own time is
    subtracted, because the calibration of exchanges already holds what waking threads and copying cost.
    """
    if config.pp > 1:
        raise ConfigError("steps without communication are timed for tensor parallelism alone; allowed: pp = 1")
    silent = replace(config, compress="none", gradient="", link="unlimited")
    launched = launch("compute", {"config": silent.to_json(), "steps": steps}, config.world_size, Link.parse("unlimited"))
    seconds = [record["value"] for record in launched.records if record["kind"] == "compute"]
    if launched.failure or not seconds:
        raise WireError(f"steps without communication: {launched.failure or 'no measurements'}")
    return float(seconds[0])


def compute_rank(payload: Mapping[str, Any], emit: Callable[[str, Any], None], link: Link) -> None:
    """Time steps without communication, as one rank."""
    config = RunConfig.from_json(payload["config"])
    groups = MeshGroups.of(config)
    silent = _InStep(groups.tp)
    step, _ = _step(config, replace(groups, tp=silent), link)
    seconds, own = [], []
    for _ in range(payload["steps"] + 3):
        silent.barriers_s, silent.copies_s = [], 0.0
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start - silent.copies_s)
        own.append(silent.barriers_s)
    everybody = groups.tp.all_gather(torch.tensor(own, dtype=torch.float64))
    # Whoever comes last to a barrier waits for nobody: its time there is the barrier's own.
    barriers_s = everybody.amin(0).sum(1).tolist()
    emit("compute", median(total - barrier for total, barrier in list(zip(seconds, barriers_s))[3:]))


class _InStep(SilentCollective):
    """Silence behind a barrier. Owner of what the barriers and the copies in the place of sums took in this step."""

    def __init__(self, inner: Collective) -> None:
        super().__init__(inner.rank, inner.world_size)
        self.inner = inner
        self.barriers_s: list[float] = []
        self.copies_s = 0.0

    def all_reduce(self, x: Tensor) -> Tensor:
        start = time.perf_counter()
        self.inner.barrier()
        met = time.perf_counter()
        copied = super().all_reduce(x)  # its time is subtracted: a real sum copies, too, and was calibrated with it
        self.barriers_s.append(met - start)
        self.copies_s += time.perf_counter() - met
        return copied


def time_variants(
    configs: Mapping[str, RunConfig],
    rounds: int = 5,
    steps: int = 5,
    progress: Callable[[str, Any], None] = lambda kind, value: None,
) -> dict[str, Any]:
    """Return, for each variant, one measurement a round (as of ``measure``), and how the link was made.

    All configurations must have the same ranks and link. Raises ConfigError, WireError.
    """
    first = next(iter(configs.values()))
    if any((config.tp, config.pp, config.link) != (first.tp, first.pp, first.link) for config in configs.values()):
        raise ConfigError("variants that are timed side by side need the same tp, pp and link")
    payload = {"configs": {name: config.to_json() for name, config in configs.items()}, "rounds": rounds, "steps": steps}
    launched = launch("time", payload, first.world_size, Link.parse(first.link), progress)
    measured: dict[str, list[Any]] = {name: [] for name in configs}
    for record in launched.records:
        if record["kind"] == "measured":
            measured[record["value"]["variant"]].append(record["value"])
    if launched.failure or not all(measured.values()):
        raise WireError(f"timing of {', '.join(configs)}: {launched.failure or 'no measurements'}")
    return {"variants": measured, "link": {"nominal": first.link, "kind": launched.link_kind}}


def time_rank(payload: Mapping[str, Any], emit: Callable[[str, Any], None], link: Link) -> None:
    """Time the variants in turn, as one rank."""
    configs = {name: RunConfig.from_json(values) for name, values in payload["configs"].items()}
    groups = MeshGroups.of(next(iter(configs.values())))
    steps = {name: _step(config, groups, link) for name, config in configs.items()}
    for number in range(payload["rounds"]):
        for name, (step, trainee) in steps.items():
            warm = 3 if number == 0 else 1
            result = measure(step, trainee.stopwatch, ledger_of(trainee), payload["steps"], warm, payload.get("interface", ""))
            emit("measured", {"variant": name, "round": number, **result})


def _step(config: RunConfig, groups: MeshGroups, link: Link) -> tuple[Callable[[], None], ModelTrainee]:
    task = task_of(config)
    schedule = config.training().over(len(task.train))
    trainee = make_trainee(config, task, schedule, groups, 0, link)
    index = torch.arange(min(schedule.batch_size, len(task.train)))
    return lambda: trainee.step(0, index), trainee
