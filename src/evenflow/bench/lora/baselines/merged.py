"""Every adapter a model of its own, its weights merged in: for comparison, not for serving.

Nothing is added per token, and nothing is shared: a step runs once for each adapter in it. S-LoRA's merge baseline
changed one set of weights back and forth; here each adapter keeps its copy, so that changing costs nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import groupby

from evenflow.serving.core.plan import NO_ADAPTER_SLOT, SampledToken, StepPlan, StepResult, TokenLogprobs
from evenflow.serving.core.request import AdapterDigest, RequestId
from evenflow.serving.runner.worker import Worker


class MergedExecutor:
    """Executor that splits a plan by adapter. ``base`` serves requests without one; ``make_worker`` merges an adapter.

    At most ``max_copies`` merged models are kept, the ones used last. Workers share the arena, so KV pages stay valid.
    """

    def __init__(self, base: Worker, make_worker: Callable[[AdapterDigest], Worker], max_copies: int) -> None:
        self._base = base
        self._make_worker = make_worker
        self._max_copies = max_copies
        self._workers: OrderedDict[AdapterDigest, Worker] = OrderedDict()
        self._digest_by_slot: dict[int, AdapterDigest] = {}

    def run(self, plan: StepPlan) -> StepResult:
        """See Executor. Adapter pages stay unwritten: nothing reads them."""
        for load in plan.loads:
            self._digest_by_slot[load.slot] = load.digest
        tokens: dict[RequestId, SampledToken] = {}
        prompt_logprobs: dict[RequestId, Sequence[TokenLogprobs]] = {}
        duration_s = 0.0
        by_slot = sorted(plan.sequences, key=lambda sequence: sequence.adapter_slot)
        for slot, sequences in groupby(by_slot, key=lambda sequence: sequence.adapter_slot):
            worker = self._base if slot == NO_ADAPTER_SLOT else self._worker(self._digest_by_slot[slot])
            part = worker.run(StepPlan(plan.step, tuple(sequences)))
            tokens |= part.tokens
            prompt_logprobs |= part.prompt_logprobs
            duration_s += part.duration_s
        return StepResult(plan.step, tokens, prompt_logprobs, duration_s)

    def close(self) -> None:
        """Drop the copies."""
        self._workers.clear()

    def _worker(self, digest: AdapterDigest) -> Worker:
        worker = self._workers.get(digest)
        if worker is None:
            while len(self._workers) >= self._max_copies:
                self._workers.popitem(last=False)
            worker = self._workers[digest] = self._make_worker(digest)
        self._workers.move_to_end(digest)
        return worker
