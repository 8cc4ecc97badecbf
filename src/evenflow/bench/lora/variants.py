"""What is compared: the engine as it is shipped, and each of S-LoRA's ablations and its neighbours' ways, by name.

A variant answers the questions that they differ in; everything else is the same engine. ``NAME[:ARG]`` like policies.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from evenflow.base.errors import ConfigError
from evenflow.bench.lora.baselines.lora_backends import lora_backend
from evenflow.bench.lora.baselines.merge import merge
from evenflow.bench.lora.baselines.merged import MergedExecutor
from evenflow.bench.lora.baselines.no_lora import NoLoRA
from evenflow.bench.lora.baselines.padding import PaddedAdapters
from evenflow.bench.lora.baselines.partition import PartitionedArena
from evenflow.bench.lora.row_adapters import AdapterPool
from evenflow.bench.lora.variant_names import VARIANTS, check_variant, number
from evenflow.serving.adapters.row_file import MemoryRows, RowFile
from evenflow.serving.backends.attention.attention_backend import AttentionBackend
from evenflow.serving.backends.choose import choose
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.executor import Executor
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.layout import ArenaLayout, place
from evenflow.serving.models.decoder import Decoder
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.weights import load_weights
from evenflow.serving.runner.executor import LocalExecutor
from evenflow.serving.runner.sampler import Sampler
from evenflow.serving.runner.worker import Worker
from evenflow.serving.scheduler.prefetch import Prefetch, prefetch_within


class Adapters(Protocol):
    """Where adapters are known."""

    def record(self, digest: AdapterDigest) -> AdapterRecord:
        """Identity, shape and size."""
        ...

    def host_rows(self, digest: AdapterDigest) -> tuple[AdapterSignature, RowFile | MemoryRows]:
        """Signature and rows."""
        ...


class Testbed(Protocol):
    """What all variants stand on: one model, one set of adapters, and what a batch may hold."""

    folder: Path
    config: ModelConfig
    layout: ArenaLayout
    dtype: torch.dtype
    device: torch.device
    model: Decoder
    adapters: AdapterPool
    max_lora_rank: int
    max_num_seqs: int
    max_batch_tokens: int


class Unified:
    """The engine as it is shipped: one arena for KV cache and adapters, rows read where they lie."""

    def arena(self, testbed: Testbed, num_pages: int) -> Arena:
        """Who may have which pages."""
        return Arena(num_pages)

    def adapters(self, testbed: Testbed) -> Adapters:
        """In which form adapters are loaded."""
        return testbed.adapters

    def num_slots(self, testbed: Testbed) -> int | None:
        """Adapters that can be resident at once; None: as many as fit."""
        return None

    def prefetch(self, testbed: Testbed, num_pages: int) -> Prefetch | None:
        """Which adapters of waiting requests are loaded ahead: as a server does by default."""
        return prefetch_within(EngineConfig(model=testbed.folder).adapter_prefetch_bytes, testbed.layout, num_pages)

    def lora(self, storage: Storage) -> LoRABackend:
        """How their products are computed: the backend that a server would choose here."""
        return lora_backend(choose(storage.device, storage.dtype, storage.layout.shape).lora, storage)

    def executor(
        self, testbed: Testbed, storage: Storage, attention: AttentionBackend, lora: LoRABackend, adapters: Adapters
    ) -> Executor:
        """What computes a plan. Compiles what compiles."""
        worker = Worker(testbed.model, storage, attention, lora, Sampler(), adapters.host_rows)
        worker.warm_up(testbed.max_batch_tokens, testbed.max_num_seqs)
        return LocalExecutor(worker)


class Backend(Unified):
    """The engine as it is shipped, but with the LoRA backend of this name."""

    def __init__(self, lora_name: str) -> None:
        self._lora_name = lora_name

    def lora(self, storage: Storage) -> LoRABackend:
        """The one of that name."""
        return lora_backend(self._lora_name, storage)


class WithoutLoRA(Unified):
    """Adapters are loaded and never applied: the bound of what better kernels could gain."""

    def lora(self, storage: Storage) -> LoRABackend:
        """Nothing."""
        return NoLoRA()


class Partitioned(Unified):
    """The same bytes, of which ``share`` belong to adapters and the rest to the KV cache (S-LoRA's no-unify-mem)."""

    def __init__(self, share: float) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"the share of adapters is {share}; allowed: between 0 and 1")
        self._share = share

    def arena(self, testbed: Testbed, num_pages: int) -> Arena:
        """Cut in two."""
        return PartitionedArena(num_pages, min(max(1, round(self._share * num_pages)), num_pages - 1))


class Slots(Unified):
    """A fixed number of adapter slots, as vLLM has them: each has room for one LoRA rank, apart from the KV cache's pages."""

    def __init__(self, num_slots: int | None) -> None:
        self._num_slots = num_slots

    def num_slots(self, testbed: Testbed) -> int:
        """As many as were asked for, else one for each running request."""
        return self._num_slots or testbed.max_num_seqs

    def prefetch(self, testbed: Testbed, num_pages: int) -> None:
        """None: slots are filled when their request starts."""

    def adapters(self, testbed: Testbed) -> Adapters:
        """Padded."""
        return PaddedAdapters(testbed.layout, testbed.max_lora_rank, testbed.adapters.record, testbed.adapters.host_rows)

    def arena(self, testbed: Testbed, num_pages: int) -> Arena:
        """The slots' pages are theirs for good."""
        signature = testbed.adapters.record(AdapterDigest("0")).signature
        padded = AdapterSignature(
            tuple(tuple(testbed.max_lora_rank if lora_rank else 0 for lora_rank in layer) for layer in signature.lora_ranks)
        )
        reserved = self.num_slots(testbed) * place(testbed.layout, padded).num_pages
        if reserved >= num_pages - 1:
            raise ConfigError(
                f"{self.num_slots(testbed)} slots of rank {testbed.max_lora_rank} take {reserved} pages; "
                f"the arena has {num_pages}"
            )
        return PartitionedArena(num_pages, reserved)


class Merged(Unified):
    """Each adapter's weights merged into a copy of the model: nothing per token, one pass per adapter and step."""

    def __init__(self, max_copies: int) -> None:
        self._max_copies = max_copies

    def lora(self, storage: Storage) -> LoRABackend:
        """None: it is in the weights."""
        return NoLoRA()

    def executor(
        self, testbed: Testbed, storage: Storage, attention: AttentionBackend, lora: LoRABackend, adapters: Adapters
    ) -> Executor:
        """A worker for each adapter."""

        def make_worker(digest: AdapterDigest) -> Worker:
            weights = load_weights(testbed.folder, testbed.config, testbed.dtype, testbed.device)
            merge(weights, testbed.layout, testbed.adapters.record(digest).signature, testbed.adapters.image(digest))
            model = Decoder(testbed.config, weights)
            return Worker(model, storage, attention, lora, Sampler(), adapters.host_rows)

        base = Worker(testbed.model, storage, attention, lora, Sampler(), adapters.host_rows)
        base.warm_up(testbed.max_batch_tokens, testbed.max_num_seqs)
        return MergedExecutor(base, make_worker, self._max_copies)


_MAKERS: dict[str, Callable[[str], Unified]] = {
    "unified": lambda _: Unified(),
    "partitioned": lambda argument: Partitioned(number(argument or "0.5")),
    "slots": lambda argument: Slots(int(number(argument)) if argument else None),
    "padded": lambda _: Backend("padded"),
    "gather": lambda _: Backend("gather"),
    "loop": lambda _: Backend("torch"),
    "merged": lambda argument: Merged(int(number(argument or "8"))),
    "none": lambda _: WithoutLoRA(),
}
assert _MAKERS.keys() == VARIANTS.keys()


def variant(name: str) -> Unified:
    """The variant called ``NAME[:ARG]``. Raises RegistryError listing the known ones, ConfigError for a wrong argument."""
    check_variant(name)
    base, _, argument = name.partition(":")
    return _MAKERS[base](argument)


__all__ = ["Adapters", "Testbed", "Unified", "variant"]
