"""One run of the benchmark as a value: what is trained, how it is split, what is compressed, over which link."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from evenflow.base.errors import ConfigError
from evenflow.comm.collectives.links import Link
from evenflow.mcbench.names import DEFAULT_LAYERS, MODELS
from evenflow.mcbench.runs.precision import precision
from evenflow.mcbench.runs.trainer import DEFAULT_SCHEDULES, FINE_TUNING_RATE, Schedule
from evenflow.mcbench.split.pipeline import SCHEDULES
from evenflow.mcbench.split.rules import CompressionRules, parse_gradients

_KEY_DEFAULTS = {"layers": "last-half"}
"""Defaults that have changed since results were first named by them: a key leaves out what it always has left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything a run depends on. Raises ConfigError or RegistryError for what cannot work."""

    task: str = "digits"
    model: str = ""
    """A built-in name or a folder; empty: the task's own."""
    compress: str = "none"
    layers: str = DEFAULT_LAYERS
    modules: str = ".*"
    tp: int = 1
    pp: int = 1
    dp: int = 1
    """Data-parallel ranks: each trains on its part of every batch, and gradients are averaged."""
    microbatches: int = 2
    """Micro-batches of a pipelined step."""
    schedule: str = "gpipe"
    gradient: str = ""
    """A gradient rule, or ``site=rule; ...`` for tp.forward and pp.forward; empty: the compressors' own."""
    warmup_steps: int = 0
    seeds: int = 5
    steps: int = 0
    """0: the task's default."""
    batch: int = 0
    rate: float = 0.0
    dense_below: int = 0
    """Bytes: smaller tensors are sent as they are."""
    link: str = "unlimited"
    emulate: bool = False
    """Virtual ranks in this process instead of real ones."""
    timed_steps: int = 20
    """Iterations measured after training, by real ranks."""
    dtype: str = "fp32"
    """fp32, bf16, or autocast (fp32 weights, products in bf16)."""
    threads: int = 1
    """Compute threads of each process. Sums of floats depend on how they are shared out over threads, so what is compared has
    the same number everywhere; one by default, which every machine has."""
    data_root: str = ""
    hidden: int = 0
    """Hidden size of a built-in model; 0: its default."""
    num_layers: int = 0
    heads: int = 0
    pretrain: str = ""
    """Task to pre-train the model on, with the same layout; virtual ranks only."""
    pretrain_compress: str = "none"
    pretrain_gradient: str = ""

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp", "microbatches", "seeds", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule {self.schedule!r}; allowed: {', '.join(SCHEDULES)}")
        if precision(self.dtype).weights == torch.float16:
            raise ConfigError(
                "training in fp16 needs loss scaling, which sends infinities on purpose; allowed: fp32, bf16, autocast "
                "(`mcbench eval` takes fp16)"
            )
        if precision(self.dtype).is_autocast and self.pp > 1:
            raise ConfigError("autocast over pipeline stages is not supported; allowed: fp32, bf16, or pp = 1")
        Link.parse(self.link)
        if self.emulate and self.link != "unlimited":
            raise ConfigError("virtual ranks have no link; leave out --link or --emulate")
        if self.pretrain and not self.emulate:
            raise ConfigError(f"pretrain={self.pretrain} needs virtual ranks: add --emulate")
        rules = self.rules()
        if self.pp > 1 and "pp.backward" in rules.by_site and self.microbatches < 1:
            raise ConfigError("pipelines need micro-batches")
        ranks = {"tp": self.tp, "sp": self.tp, "pp": self.pp, "dp": self.dp}
        if self.dp > 1 and (self.emulate or self.tp * self.pp > 1):
            raise ConfigError("data parallelism runs on real ranks alone: leave out --emulate, --tp and --pp")
        unused = [name for name in rules.by_site if ranks[name[:2]] == 1]
        if unused:
            counts = f"tp={self.tp}, pp={self.pp}, dp={self.dp}"
            raise ConfigError(f"rules for {', '.join(unused)}, but there is only one rank at that site ({counts})")

        if rules.is_sequence_parallel and (self.emulate or self.pp > 1):
            raise ConfigError("sequence parallelism runs on real ranks without pipeline stages: leave out --emulate, and --pp")

    @property
    def world_size(self) -> int:
        """How many ranks the run has."""
        return self.tp * self.pp * self.dp

    def rules(self) -> CompressionRules:
        """Return the rules as values."""
        return CompressionRules.parse(
            self.compress,
            self.layers,
            self.modules,
            warmup_steps=self.warmup_steps,
            gradients=parse_gradients(self.gradient),
            dense_below=self.dense_below,
        )

    def training(self) -> Schedule:
        """Return the training schedule, the task's defaults filled in."""
        default = DEFAULT_SCHEDULES.get(self.task, Schedule())
        is_folder = self.model not in ("", *MODELS)
        return Schedule(
            num_steps=self.steps or default.num_steps,
            epochs=0 if self.steps else default.epochs,
            batch_size=self.batch or default.batch_size,
            learning_rate=self.rate or (FINE_TUNING_RATE if is_folder else default.learning_rate),
            fixed_batches="aqsgd" in self.compress,
        )

    def sizes(self) -> dict[str, int]:
        """Return the sizes of a built-in model that were asked for."""
        asked = {"hidden_size": self.hidden, "num_layers": self.num_layers, "num_heads": self.heads}
        return {name: value for name, value in asked.items() if value}

    def key(self) -> str:
        """Return a short name that is equal exactly for equal configurations.

        Fields at their defaults are left out, so that a new field does not orphan the results of a suite.
        """
        defaults = {f.name: _KEY_DEFAULTS.get(f.name, f.default) for f in fields(self)}
        chosen = {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}
        text = json.dumps(chosen, sort_keys=True)
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
