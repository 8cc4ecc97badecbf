"""A plan laid out as arrays, against the plan read token by token."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.serving.backends.devices.batch import build_batch
from evenflow.serving.core.plan import PlannedSequence, SampleSpec, StepPlan
from evenflow.serving.core.request import RequestId
from evenflow.serving.core.sampling import GREEDY

SAMPLE = SampleSpec(GREEDY, [], [], 0)


@st.composite
def plans(draw):
    page_tokens = draw(st.sampled_from([16, 32]))
    sequences = []
    for i in range(draw(st.integers(1, 6))):
        start, rows = draw(st.integers(0, 70)), draw(st.integers(1, 40))
        count = -(-(start + rows) // page_tokens)
        sequences.append(
            PlannedSequence(
                request_id=RequestId(str(i)),
                token_ids=draw(st.lists(st.integers(0, 500), min_size=rows, max_size=rows)),
                start=start,
                pages=draw(st.lists(st.integers(0, 10_000), min_size=count, max_size=count)),
                adapter_slot=draw(st.integers(-1, 5)),
                sample=draw(st.sampled_from([None, SAMPLE])),
                prompt_logprobs=draw(st.sampled_from([None, None, 2])),
            )
        )
    return StepPlan(0, tuple(sequences)), page_tokens


@settings(max_examples=80)
@given(plans())
def test_every_row_is_where_the_plan_says(case):
    plan, page_tokens = case
    batch = build_batch(plan, page_tokens, torch.device("cpu"))
    row, logits = 0, []
    assert batch.num_sequences == len(plan.sequences)
    for s, sequence in enumerate(plan.sequences):
        assert batch.row_starts[s] == row
        assert batch.context_lens[s] == sequence.start + sequence.num_tokens
        assert batch.adapter_slots[s] == sequence.adapter_slot
        assert list(batch.pages[s, : len(sequence.pages)]) == list(sequence.pages)
        for i, token in enumerate(sequence.token_ids):
            position = sequence.start + i
            assert batch.token_ids_T[row] == token
            assert batch.positions_T[row] == position
            assert batch.page_of_row[row] == sequence.pages[position // page_tokens]
            assert batch.page_slot_of_row[row] == position % page_tokens
            is_last = i == sequence.num_tokens - 1
            if sequence.prompt_logprobs is not None or (is_last and sequence.sample is not None):
                logits.append(row)
            row += 1
    assert batch.num_rows == plan.num_tokens == row
    assert batch.logits_rows.tolist() == logits
