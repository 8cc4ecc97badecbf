"""Tensors of one rank: it runs plans and decides nothing.

A worker owns the model, the arena's storage and the backends. It knows no client, no queue and no policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from evenflow.base.progress import Tell, tell_nobody
from evenflow.serving.backends.attention.attention_backend import AttentionBackend
from evenflow.serving.backends.devices.page_loader import HostRows, PageLoader, page_loader
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.plan import (
    AdapterLoad,
    PlannedSequence,
    SampledToken,
    SampleSpec,
    StepPlan,
    StepResult,
    TokenLogprobs,
)
from evenflow.serving.core.request import AdapterDigest, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.models.decoder import Decoder
from evenflow.serving.runner.forward import EagerForward, Forward
from evenflow.serving.runner.sampler import Sampler, token_logprobs

HostSide = Callable[[AdapterDigest], tuple[AdapterSignature, HostRows]]
"""Signature and rows of an adapter on the host."""

COMPILING = "compiling kernels"


class Worker:
    """Runs StepPlans on one device. All calls on one thread. ``sampler``: None on a rank whose results nobody reads."""

    def __init__(
        self,
        model: Decoder,
        storage: Storage,
        attention: AttentionBackend,
        lora: LoRABackend,
        sampler: Sampler | None,
        host_rows: HostSide,
        loader: PageLoader | None = None,
        forward: Forward | None = None,
    ) -> None:
        self._storage = storage
        self._attention = attention
        self._lora = lora
        self._sampler = sampler
        self._host_rows = host_rows
        self._loader = loader or page_loader(storage)
        self._forward = forward or EagerForward(model, storage, attention, lora)

    def warm_up(self, max_batch_tokens: int, max_num_seqs: int, tell: Tell = tell_nobody) -> None:
        """Compile every kernel and touch every size of matrix product, on pages that nobody owns yet."""
        tell(COMPILING, 0, 6)
        self._attention.warm_up()
        tell(COMPILING, 1, 6)
        self._lora.warm_up()
        layout = self._storage.layout
        for number, (num_sequences, num_tokens) in enumerate(((1, max_batch_tokens), (max_num_seqs, 1), (1, 1)), 2):
            tell(COMPILING, number, 6)
            num_pages = min(layout.num_pages_for_tokens(num_tokens), self._storage.num_pages)
            tokens = [0] * min(num_tokens, num_pages * layout.page_tokens)
            spec = SampleSpec(GREEDY, tokens, [], 0)
            # All sequences write to the same pages. That does no harm, since nothing of what is computed here is kept.
            sequences = tuple(
                PlannedSequence(RequestId(f"warm-{i}"), tokens, 0, range(num_pages), -1, spec) for i in range(num_sequences)
            )
            self.run(StepPlan(0, sequences))
        tell(COMPILING, 5, 6)
        self._forward.warm_up()
        tell(COMPILING, 6, 6)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Load adapters, compute the plan's rows, sample."""
        started_s = time.perf_counter()
        failed, loading_s = dict[AdapterDigest, str](), 0.0
        if plan.loads:
            failed = self._begin_loads(plan.loads)
            loading_s = time.perf_counter() - started_s
        tokens, prompt_logprobs = self._sample(plan, self._forward(plan))
        if plan.loads:
            failed |= self._finish_prefetches(plan.loads)
        return StepResult(plan.step, tokens, prompt_logprobs, time.perf_counter() - started_s, failed, loading_s)

    def close(self) -> None:
        """Give back the loader's thread. Idempotent."""
        self._loader.close()

    def _begin_loads(self, loads: Sequence[AdapterLoad]) -> dict[AdapterDigest, str]:
        """Start the prefetches, copy what this step needs, and bind it. Returns what failed.

        A slot whose load has failed is bound all the same, to zeros: under tensor parallelism all ranks then
        compute the same shapes, whoever of them failed.
        """
        failed: dict[AdapterDigest, str] = {}
        for load in sorted(loads, key=lambda load: not load.is_prefetch):
            signature, rows = self._host_rows(load.digest)
            pages = load.pages[load.first : load.stop]
            if load.is_prefetch:
                self._loader.prefetch(rows, load.first, pages)
                continue
            fault = self._loader.load(rows, load.first, pages)
            if fault is not None:
                failed[load.digest] = fault
            self._lora.bind(load.slot, signature, load.pages)
        return failed

    def _finish_prefetches(self, loads: Sequence[AdapterLoad]) -> dict[AdapterDigest, str]:
        prefetched = [load for load in loads if load.is_prefetch]
        faults = self._loader.finish() if prefetched else []
        for load in prefetched:
            if load.is_last:
                self._lora.bind(load.slot, self._host_rows(load.digest)[0], load.pages)
        return {load.digest: fault for load, fault in zip(prefetched, faults, strict=True) if fault is not None}

    def _sample(
        self, plan: StepPlan, logits_LV: torch.Tensor
    ) -> tuple[dict[RequestId, SampledToken], dict[RequestId, list[TokenLogprobs]]]:
        if self._sampler is None:
            return {}, {}
        rows: list[int] = []
        specs: list[SampleSpec] = []
        request_ids: list[RequestId] = []
        prompt_logprobs: dict[RequestId, list[TokenLogprobs]] = {}
        row = 0
        for sequence in plan.sequences:
            if sequence.prompt_logprobs is not None:
                first, row = row, row + sequence.num_tokens
                prompt_logprobs[sequence.request_id] = self._score_prompt(sequence, logits_LV[first:row])
            elif sequence.sample is not None:
                row += 1
            if sequence.sample is not None:
                rows.append(row - 1)
                specs.append(sequence.sample)
                request_ids.append(sequence.request_id)
        if not rows:
            return {}, prompt_logprobs
        chosen_LV = logits_LV if len(rows) == logits_LV.shape[0] else logits_LV[rows]
        return dict(zip(request_ids, self._sampler(chosen_LV, specs))), prompt_logprobs

    @staticmethod
    def _score_prompt(sequence: PlannedSequence, logits_TV: torch.Tensor) -> list[TokenLogprobs]:
        """Log-probabilities of the prompt tokens that follow this chunk's rows."""
        assert sequence.prompt_logprobs is not None
        assert sequence.prompt_token_ids is not None
        following = sequence.prompt_token_ids[sequence.start + 1 : sequence.start + sequence.num_tokens + 1]
        return token_logprobs(logits_TV[: len(following)], list(following), sequence.prompt_logprobs)
