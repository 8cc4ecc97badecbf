"""From a plan to logits: batch, backends' plans, one upload, the model. What a worker runs, in one of two ways.

``EagerForward`` launches every kernel from the host. ``GraphedForward`` replays decode steps as CUDA graphs, recorded once
per number of rows: launching costs as much as computing on a large GPU. Both give the same logits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from evenflow.serving.backends.attention.attention_backend import AttentionBackend
from evenflow.serving.backends.devices.batch import Batch, build_batch, build_fixed_batch, is_decode
from evenflow.serving.backends.devices.staging import CopiedStaging, Staging, make_staging
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.backends.lora.side_weights import SidedLoRA
from evenflow.serving.core.plan import NO_ADAPTER_SLOT, StepPlan
from evenflow.serving.models.decoder import Decoder

log = logging.getLogger("evenflow.engine")


class Forward(Protocol):
    """Computes a plan's rows. Adapters are bound, and their pages copied, before."""

    def warm_up(self) -> None:
        """Prepare what serving needs, after every kernel has compiled."""
        ...

    def __call__(self, plan: StepPlan) -> torch.Tensor:
        """Logits [L, V] of the rows that are sampled or scored, in plan order; valid until the next call."""
        ...


class EagerForward:
    """One launch after another. Any plan, any device."""

    def __init__(self, model: Decoder, storage: Storage, attention: AttentionBackend, lora: LoRABackend) -> None:
        self.model, self.storage, self.attention, self.lora = model, storage, attention, lora
        self._staging = make_staging(storage.device)
        model.bind(attention, lora)

    def warm_up(self) -> None:
        """Nothing to prepare."""

    @torch.inference_mode()
    def __call__(self, plan: StepPlan) -> torch.Tensor:
        """See Forward."""
        self._staging.begin()
        batch = build_batch(plan, self.storage.layout.page_tokens, self.storage.device, self._staging)
        self.lora.plan(batch)
        self.attention.plan(batch)
        self._staging.upload()
        return self.model.logits(self.model.forward(batch))


class Recorder(Protocol):
    """Records the launches of a computation so that they can be repeated."""

    def record(self, compute: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """(repeat ``compute``'s launches with the same addresses, where its result lies after each)."""
        ...


class CudaRecorder:
    """CUDA graphs that share one memory pool: they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """See Recorder."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()
        return graph.replay, result


@dataclass(frozen=True, slots=True)
class _Recorded:
    staging: Staging
    replay: Callable[[], None]
    logits_LV: torch.Tensor


class GraphedForward:
    """Replays steps of decode rows alone, filled up to the next of ``sizes``; everything else goes to ``eager``.

    Two recordings for each size, with adapters and without: their number depends neither on how many adapters there
    are nor on their ranks. The backends must be able to plan a fixed batch (``Batch.is_fixed``).
    """

    def __init__(
        self,
        eager: EagerForward,
        sizes: Sequence[int],
        recorder: Recorder | None = None,
        new_staging: Callable[[], Staging] | None = None,
    ) -> None:
        self._eager = eager
        self._sizes = sorted(sizes)
        self._recorder = recorder or CudaRecorder()
        device = eager.storage.device
        self._new_staging = new_staging or (lambda: CopiedStaging(device))
        self._recorded: dict[tuple[int, bool], _Recorded] = {}

    @property
    def num_recorded(self) -> int:
        """Graphs that are held."""
        return len(self._recorded)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Record every size, the largest first, so that the memory of its recording is enough for the others too."""
        started_s = time.perf_counter()
        nothing = StepPlan(0, ())
        for size in reversed(self._sizes):
            for has_adapters in (True, False):
                staging = self._new_staging()
                self._eager.model.bind(self._eager.attention, self._eager.lora if has_adapters else None)
                for _ in range(2):  # Not recorded: kernels compile now, and buffers grow to the size that they keep.
                    self._compute(self._plan(nothing, size, has_adapters, staging))
                batch = self._plan(nothing, size, has_adapters, staging)
                replay, logits_LV = self._recorder.record(lambda batch=batch: self._compute(batch))  # type: ignore[misc]
                self._recorded[size, has_adapters] = _Recorded(staging, replay, logits_LV)
        self._eager.model.bind(self._eager.attention, self._eager.lora)
        log.info("recorded %d decode graphs in %.1f s", len(self._recorded), time.perf_counter() - started_s)

    @torch.inference_mode()
    def __call__(self, plan: StepPlan) -> torch.Tensor:
        """See Forward."""
        count = len(plan.sequences)
        size = next((size for size in self._sizes if size >= count), None)
        if size is None or not self._recorded or not is_decode(plan) or self._has_side_weights(plan):
            return self._eager(plan)
        has_adapters = any(sequence.adapter_slot != NO_ADAPTER_SLOT for sequence in plan.sequences)
        recorded = self._recorded[size, has_adapters]
        self._plan(plan, size, has_adapters, recorded.staging)
        recorded.replay()
        return recorded.logits_LV[:count]

    def _has_side_weights(self, plan: StepPlan) -> bool:
        """True if an adapter of the plan changes more than linears: which tensors it has differs from adapter to adapter."""
        lora = self._eager.lora
        return isinstance(lora, SidedLoRA) and any(lora.side.has(sequence.adapter_slot) for sequence in plan.sequences)

    def _plan(self, plan: StepPlan, size: int, has_adapters: bool, staging: Staging) -> Batch:
        eager = self._eager
        staging.begin()
        batch = build_fixed_batch(plan, size, eager.storage.layout.page_tokens, staging)
        if has_adapters:
            eager.lora.plan(batch)
        eager.attention.plan(batch)
        staging.upload()
        return batch

    def _compute(self, batch: Batch) -> torch.Tensor:
        return self._eager.model.logits(self._eager.model.forward(batch))


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Numbers of rows to record: steps of 8, and 1, 2 and 4; a step is filled up by at most 7 rows."""
    return sorted({size for size in (1, 2, 4, *range(8, max_num_seqs, 8)) if size < max_num_seqs} | {max_num_seqs})


__all__ = ["CudaRecorder", "EagerForward", "Forward", "GraphedForward", "Recorder", "graph_sizes"]
