"""Servers on paper: how long their steps take, and how they are set up. What replays run against.

``a10g-llama-7b`` is VTC's server: an A10G with Llama-7B. Its step times are a fit to the published cost profile, and its
settings those of the published runs, so that these can be replayed as they were. ``chunked`` is our way of running the
same hardware: chunked prefill beside decode, pages of 16 tokens, lengths unknown.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.fairness.books.cost import ProfiledQuadratic
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.policy import Policy
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.plan import NO_ADAPTER_SLOT, StepPlan
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler import (
    Admission,
    BatchRule,
    ExclusivePrefillRule,
    KnownPeak,
    MixedBatchRule,
    PredictAndPreempt,
    Scheduler,
    SchedulerLimits,
    Shedding,
)


class StepWork(NamedTuple):
    """What a step holds."""

    num_decoding: int
    """Sequences that get their next token."""
    context_tokens: int
    """Tokens that these attend to, all together."""
    prefill_tokens: int
    adapters_copied: float
    """Before it can begin; parts of one count as parts."""
    num_adapters: int


@dataclass(frozen=True, slots=True)
class StepTimeProfile:
    """Seconds of a step. The defaults: Llama-7B on an A10G (fit to VTC's cost profile; 20 of 23 points within 8 %).

    decode: 20.3 ms + 0.212 ms x sequences + 1.58 us x context tokens; prefill: 35.8 ms + 0.213 ms x tokens. A step that
    does both reads the weights once: the larger base, and both sums. ``factor`` is what the published server adds for
    remote calls and Python; it was chosen so that its throughput comes out. Adapters: each page of one that is copied to the
    device takes its time (a prefetch is beside the step), and each distinct one in the batch is read once a step.
    """

    decode_base_s: float = 20.3e-3
    decode_sequence_s: float = 0.212e-3
    context_token_s: float = 1.58e-6
    prefill_base_s: float = 35.8e-3
    prefill_token_s: float = 0.213e-3
    adapter_bytes: int = 16 * 2**20
    """Size of an adapter: rank 8 on all four attention projections of a 7B model."""
    adapter_byte_s: float = 1 / 12e9
    """Copying an adapter to the device: PCIe 4.0 x16 at about half its peak."""
    adapter_read_byte_s: float = 1 / 600e9
    """Reading its weights for a step: an A10G's memory bandwidth."""
    factor: float = 1.075

    def __call__(self, plan: StepPlan) -> float:
        """Seconds for this plan, adapter loads included."""
        work = self.work(plan)
        base = self.prefill_base_s if work.prefill_tokens else 0.0
        if work.num_decoding:
            base = max(base, self.decode_base_s)
        rest = self.decode_sequence_s * work.num_decoding + self.context_token_s * work.context_tokens
        rest += self.prefill_token_s * work.prefill_tokens
        byte_s = self.adapter_byte_s * work.adapters_copied + self.adapter_read_byte_s * work.num_adapters
        return self.factor * (base + rest) + self.adapter_bytes * byte_s

    @staticmethod
    def work(plan: StepPlan) -> StepWork:
        """What the step time depends on."""
        num_decoding = context = num_prefill_tokens = 0
        adapters = set()
        for sequence in plan.sequences:
            num_tokens = len(sequence.token_ids)
            adapters.add(sequence.adapter_slot)
            if num_tokens == 1 and sequence.start:
                num_decoding += 1
                context += sequence.start
            else:
                num_prefill_tokens += num_tokens
        loaded = sum((load.stop - load.first) / len(load.pages) for load in plan.loads if not load.is_prefetch)
        return StepWork(num_decoding, context, num_prefill_tokens, loaded, len(adapters - {NO_ADAPTER_SLOT}))


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server is set up, as far as scheduling can see it."""

    name: str
    pool_tokens: int
    """Tokens that the KV cache holds: M of the bound."""
    page_tokens: int
    max_num_seqs: int
    max_batch_tokens: int
    """Rows of a step; for the papers' servers, rows of a prefill step."""
    is_exclusive: bool
    """Prefill alone in a step, after at least ``decode_steps`` decode steps, lengths known (the papers' servers)."""
    decode_steps: int = 10
    reserved_tokens_per_client: int = 0
    serves_adapters: bool = True
    """False: the published runs, in which adapters are names and nothing else."""
    adapter_pages: int = 2
    adapter_bytes: int = 16 * 2**20
    """One adapter: rank 8 on all four attention projections of a 7B model."""

    def scheduler(
        self, policy: Policy, queues: ClientQueues, max_model_len: int, shedding: Shedding | None = None
    ) -> Scheduler:
        """The real scheduler, set up this way."""
        num_pages = self.pool_tokens // self.page_tokens
        arena = Arena(num_pages)
        rule: BatchRule = MixedBatchRule()
        admission: Admission = PredictAndPreempt()
        if self.is_exclusive:
            rule = ExclusivePrefillRule(max_prefill_tokens=self.max_batch_tokens, decode_steps=self.decode_steps)
            admission = KnownPeak(reserved_tokens=self.reserved_tokens_per_client, reserved_by="client")
        return Scheduler(
            policy=policy,
            queues=queues,
            arena=arena,
            residency=Residency(arena, self._record),
            limits=SchedulerLimits(
                max_num_seqs=self.max_num_seqs,
                max_batch_tokens=max(self.max_batch_tokens, self.max_num_seqs),
                max_model_len=max_model_len,
                page_tokens=self.page_tokens,
            ),
            batch_rule=rule,
            admission=admission,
            shedding=shedding,
        )

    def _record(self, digest: AdapterDigest) -> AdapterRecord:
        return AdapterRecord(digest, AdapterSignature(()), self.adapter_pages, self.adapter_bytes)


@dataclass(frozen=True, slots=True)
class Profile:
    """A machine with a model: its step times, and its server as published or as we would run it."""

    name: str
    step_time: StepTimeProfile
    servers: Mapping[str, ServerSettings]
    """The first is the one that is meant if none is named."""
    cost: ProfiledQuadratic = field(default_factory=ProfiledQuadratic)
    """Milliseconds of the machine that a request takes while the batch is full."""

    def with_factor(self, factor: float) -> StepTimeProfile:
        """The step times with another factor. Raises ConfigError for one that is not finite and above 0."""
        if not 0 < factor < math.inf:
            raise ConfigError(f"the step-time factor is {factor}; allowed: finite and above 0")
        return replace(self.step_time, factor=factor)

    def server(self, name: str | None = None, pool_tokens: int | None = None) -> ServerSettings:
        """The settings of that name, with another pool if given. Raises ConfigError for a pool that cannot work."""
        try:
            settings = self.servers[next(iter(self.servers)) if name is None else name]
        except KeyError:
            raise RegistryError(f"unknown server {name!r}; known: {', '.join(sorted(self.servers))}") from None
        if pool_tokens is None:
            return settings
        if pool_tokens < 64:
            raise ConfigError(f"a pool of {pool_tokens} tokens; allowed: 64 and more")
        batch = max(pool_tokens // 6, 3072) if settings.is_exclusive else settings.max_batch_tokens
        return replace(settings, pool_tokens=pool_tokens, max_batch_tokens=batch)


def profile_registry() -> dict[str, Callable[[], Profile]]:
    """The profiles that come with EvenFlow."""
    return {"a10g-llama-7b": a10g_llama_7b}


def a10g_llama_7b() -> Profile:
    """VTC's main server (its sections 5.2 and 5.3)."""
    paper = ServerSettings(
        name="paper",
        pool_tokens=10_000,
        page_tokens=1,
        max_num_seqs=1000,
        max_batch_tokens=3072,
        is_exclusive=True,
        reserved_tokens_per_client=32,
        serves_adapters=False,
    )
    chunked = ServerSettings(
        name="chunked", pool_tokens=10_000, page_tokens=16, max_num_seqs=256, max_batch_tokens=512, is_exclusive=False
    )
    return Profile("a10g-llama-7b", StepTimeProfile(), MappingProxyType({"paper": paper, "chunked": chunked}))


def load_profile(name: str) -> Profile:
    """A profile by name, or from the TOML file that ``evenflow profile`` writes. Raises ConfigError or RegistryError."""
    registry = profile_registry()
    if name in registry:
        return registry[name]()
    if not name.endswith(".toml"):
        raise RegistryError(f"unknown profile {name!r}; known: {', '.join(sorted(registry))}, or a .toml file")
    try:
        table = tomllib.loads(Path(name).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the profile {name}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {error}") from error
    step_time = _from_table(StepTimeProfile, table.get("step_time", {}), name)
    servers = {
        key: _from_table(ServerSettings, {"name": key, **values}, name) for key, values in table.get("servers", {}).items()
    }
    if not servers:
        raise ConfigError(f"{name}: a profile needs at least one table [servers.NAME]")
    return Profile(
        Path(name).stem, step_time, MappingProxyType(servers), _from_table(ProfiledQuadratic, table.get("cost", {}), name)
    )


def _from_table(kind: type, table: object, name: str):  # type: ignore[no-untyped-def]
    """A dataclass from a TOML table. Raises ConfigError naming a field that is unknown, missing or of the wrong type."""
    known = {each.name for each in fields(kind)}
    if not isinstance(table, dict) or not set(table) <= known:
        raise ConfigError(f"{name}: {kind.__name__} has the fields {', '.join(sorted(known))}; found: {table!r}")
    for key, value in table.items():
        if key != "name" and (not isinstance(value, int | float) or value < 0):
            raise ConfigError(f"{name}: {key} is {value!r}; allowed: numbers from 0")
    try:
        return kind(**table)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from None
