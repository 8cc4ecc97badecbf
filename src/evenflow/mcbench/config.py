"""One run of the benchmark as a value: what is trained, how it is split, what is compressed, over which link."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.comm import GradientRule
from evenflow.comm.links import Link
from evenflow.mcbench.pipeline import SCHEDULES
from evenflow.mcbench.policy import Policy
from evenflow.mcbench.trainer import DEFAULT_SCHEDULES, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything a run depends on. Raises ConfigError or RegistryError for what cannot work."""

    task: str = "digits"
    model: str = ""
    """A built-in name or a folder; empty: the task's own."""
    compress: str = "none"
    layers: str = "last-half"
    modules: str = ".*"
    tp: int = 1
    pp: int = 1
    microbatches: int = 2
    """Micro-batches of a pipelined step."""
    schedule: str = "gpipe"
    gradient: str = ""
    """A gradient rule for the forward sum; empty: the compressor's own."""
    warmup_steps: int = 0
    seeds: int = 5
    steps: int = 0
    """0: the task's default."""
    batch: int = 0
    rate: float = 0.0
    link: str = "unlimited"
    emulate: bool = False
    """Virtual ranks in this process instead of real ones."""
    timed_steps: int = 20
    """Iterations measured after training, by real ranks."""
    data_root: str = ""
    hidden: int = 0
    """Hidden size of a built-in model; 0: its default."""
    num_layers: int = 0

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "microbatches", "seeds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule {self.schedule!r}; allowed: {', '.join(SCHEDULES)}")
        if self.gradient and self.gradient not in [rule.value for rule in GradientRule]:
            raise ConfigError(f"gradient {self.gradient!r}; allowed: {', '.join(rule.value for rule in GradientRule)}")
        Link.parse(self.link)
        if self.emulate and self.link != "unlimited":
            raise ConfigError("virtual ranks have no link; leave out --link or --emulate")
        policy = self.policy()
        if self.pp > 1 and "pp.backward" in policy.rules and self.microbatches < 1:
            raise ConfigError("pipelines need micro-batches")
        unused = [name for name in policy.rules if (name[:2] == "tp" and self.tp == 1) or (name[:2] == "pp" and self.pp == 1)]
        if unused:
            raise ConfigError(
                f"rules for {', '.join(unused)}, but there is only one rank at that site (tp={self.tp}, pp={self.pp})"
            )

    @property
    def world_size(self) -> int:
        """How many ranks the run has."""
        return self.tp * self.pp

    def policy(self) -> Policy:
        """Return the rules as values."""
        gradient = GradientRule(self.gradient) if self.gradient else None
        return Policy.parse(self.compress, self.layers, self.modules, warmup_steps=self.warmup_steps, gradient=gradient)

    def training(self) -> Schedule:
        """Return the training schedule, the task's defaults filled in."""
        default = DEFAULT_SCHEDULES.get(self.task, Schedule())
        return Schedule(
            num_steps=self.steps or default.num_steps,
            batch_size=self.batch or default.batch_size,
            learning_rate=self.rate or default.learning_rate,
            fixed_batches="aqsgd" in self.compress,
        )

    def sizes(self) -> dict[str, int]:
        """Return the sizes of a built-in model that were asked for."""
        asked = {"hidden_size": self.hidden, "num_layers": self.num_layers}
        return {name: value for name, value in asked.items() if value}

    def key(self) -> str:
        """Return a short name that is equal exactly for equal configurations."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> RunConfig:
        """Read what ``to_json`` wrote. Raises ConfigError for unknown fields."""
        unknown = sorted(set(values) - {f.name for f in fields(RunConfig)})
        if unknown:
            raise ConfigError(f"unknown fields of a run: {', '.join(unknown)}")
        return RunConfig(**values)
