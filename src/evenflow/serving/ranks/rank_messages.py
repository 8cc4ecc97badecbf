"""What the engine process tells its tensor-parallel ranks, as msgpack: one message per step, and now and then an adapter.

A rank computes rows and knows nothing else: no request ids, no sampling, no text. The result of a step stays on rank 0.
"""

from __future__ import annotations

import msgspec

from evenflow.serving.core.plan import AdapterLoad, PlannedSequence, SampleSpec, StepPlan
from evenflow.serving.core.request import RequestId
from evenflow.serving.core.sampling import GREEDY


class RankSequence(msgspec.Struct, array_like=True):
    """The rows of one sequence."""

    token_ids: list[int]
    start: int
    pages: list[int]
    adapter_slot: int
    has_sample: bool
    has_prompt_logprobs: bool


class RunStep(msgspec.Struct, tag=True, array_like=True):
    """Compute one step."""

    step: int
    sequences: list[RankSequence]
    loads: list[AdapterLoad]


class Forget(msgspec.Struct, tag=True, array_like=True):
    """No step will load this adapter again, unless it is prepared again."""

    digest: str


class Stop(msgspec.Struct, tag=True, array_like=True):
    """End the process."""


class Prepare(msgspec.Struct, tag=True, array_like=True):
    """Read the PEFT folder at ``path`` and lay out this rank's shard of it."""

    path: str
    discarded: list[str] = []
    """Digests whose stored rows are damaged on some rank: forget them first."""
    must_read: bool = False
    boundary: str = ""
    """A folder inside which links may lead; empty: none."""


class Prepared(msgspec.Struct, tag=True, array_like=True):
    """Answer to Prepare."""

    digest: str
    num_pages: int


class Refused(msgspec.Struct, tag=True, array_like=True):
    """Answer to Prepare: it could not be done. ``error_type``: class name in evenflow.base.errors."""

    error_type: str
    error: str
    reasons: list[str] = []


class Loaded(msgspec.Struct, tag=True, array_like=True):
    """Sent after each step that had loads: what could not be loaded, digest to reason."""

    failed: dict[str, str]


ToRank = RunStep | Forget | Stop

encoder = msgspec.msgpack.Encoder()
step_decoder = msgspec.msgpack.Decoder(ToRank)
prepare_decoder = msgspec.msgpack.Decoder(Prepare)
loaded_decoder = msgspec.msgpack.Decoder(Loaded)
answer_decoder = msgspec.msgpack.Decoder(Prepared | Refused)


def encode_step(plan: StepPlan) -> bytes:
    """The part of ``plan`` that ranks other than 0 need."""
    sequences = [
        RankSequence(
            list(s.token_ids), s.start, list(s.pages), s.adapter_slot, s.sample is not None, s.prompt_logprobs is not None
        )
        for s in plan.sequences
    ]
    return encoder.encode(RunStep(plan.step, sequences, list(plan.loads)))


def plan_of(message: RunStep) -> StepPlan:
    """A plan with the same rows, in the same order. Who samples is marked, how is not told."""
    sample = SampleSpec(GREEDY, [], [], 0)
    sequences = tuple(
        PlannedSequence(
            request_id=RequestId(str(i)),
            token_ids=s.token_ids,
            start=s.start,
            pages=s.pages,
            adapter_slot=s.adapter_slot,
            sample=sample if s.has_sample else None,
            prompt_logprobs=0 if s.has_prompt_logprobs else None,
        )
        for i, s in enumerate(message.sequences)
    )
    return StepPlan(message.step, sequences, tuple(message.loads))


__all__ = [
    "Forget",
    "Loaded",
    "Prepare",
    "Prepared",
    "Refused",
    "RunStep",
    "Stop",
    "answer_decoder",
    "encode_step",
    "encoder",
    "loaded_decoder",
    "plan_of",
    "prepare_decoder",
    "step_decoder",
]
