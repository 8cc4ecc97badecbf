"""What crosses to the other ranks makes the same batch there."""

from __future__ import annotations

import numpy as np
import torch

from evenflow.serving.backends.devices.batch import build_batch
from evenflow.serving.core.plan import AdapterLoad, PlannedSequence, SampleSpec, StepPlan
from evenflow.serving.core.request import AdapterDigest, RequestId
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.ranks.rank_messages import encode_step, plan_of, step_decoder


def test_a_plan_arrives_as_the_same_rows_pages_and_loads():
    spec = SampleSpec(SamplingParams(temperature=0.7, seed=3), [1, 2, 3], [4], salt=9)
    sequences = (
        PlannedSequence(RequestId("a"), [4], 3, range(2, 3), 5, spec),
        PlannedSequence(RequestId("b"), (7, 8, 9), 16, [4, 9], -1, None),
        PlannedSequence(RequestId("c"), [1, 2], 0, [7], -1, None, prompt_logprobs=4, prompt_token_ids=[1, 2, 3]),
        PlannedSequence(RequestId("d"), [6, 5], 0, [8], 0, spec, prompt_logprobs=0, prompt_token_ids=[6, 5]),
    )
    loads = (AdapterLoad(AdapterDigest("abc"), 5, [11, 12]),)
    plan = StepPlan(41, sequences, loads)
    arrived = plan_of(step_decoder.decode(encode_step(plan)))
    assert arrived.step == 41
    assert arrived.loads == loads
    here, there = (build_batch(p, 16, torch.device("cpu")) for p in (plan, arrived))
    for name in set(type(here).__slots__) - {"staging"}:
        one, other = getattr(here, name), getattr(there, name)
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=name)
    assert b"seed" not in encode_step(plan)
