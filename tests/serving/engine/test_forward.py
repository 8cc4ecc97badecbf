"""A recorded decode step gives the logits of an eager one, for any number of rows, adapters and pages."""

from __future__ import annotations

import random

import pytest
import torch

from triton_interpreter import mend

pytest.importorskip("triton")

from evenflow.serving.backends.staging import CopiedStaging
from evenflow.serving.backends.storage import Storage
from evenflow.serving.backends.triton_attention import AttentionBlocks, TritonAttention
from evenflow.serving.backends.triton_lora import TritonLoRA
from evenflow.serving.core.plan import PlannedSequence, SampleSpec, StepPlan
from evenflow.serving.core.request import RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.engine.forward import EagerForward, GraphedForward, graph_sizes
from evenflow.serving.lora.image import page_image
from evenflow.serving.lora.peft import read_adapter
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.load import load_model
from evenflow.serving.models.rope_table import rope_table
from evenflow.serving.models.tiny import make_model
from evenflow.serving.models.tiny_adapter import make_adapter

mend()
CPU = torch.device("cpu")


class StateRecorder:
    """Repeats what was recorded with the backends' state of that moment: the same tensors at the same addresses."""

    def __init__(self, *backends):
        self._backends = backends

    def record(self, compute):
        states = [dict(backend.__dict__) for backend in self._backends]
        result = compute()

        def replay():
            now = [backend.__dict__ for backend in self._backends]
            for backend, state in zip(self._backends, states):
                backend.__dict__ = dict(state)
            result.copy_(compute())
            for backend, state in zip(self._backends, now):
                backend.__dict__ = state

        return replay, result


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Model, storage, backends; slots 0 to 2 are adapters of different ranks and modules."""
    folder = tmp_path_factory.mktemp("model")
    config = make_model(folder / "model", num_hidden_layers=1)
    layout = ArenaLayout(config.shape, 4)
    storage = Storage(layout, 64, torch.float32, CPU)
    tables = rope_table(config.rope, config.shape.head_dim, 128)
    attention = TritonAttention(storage, *tables, config.shape.head_dim**-0.5, few=AttentionBlocks(16, 32, 32, 1, 1))
    lora = TritonLoRA(storage)
    pages = iter(range(30, 64))
    for slot, (rank, targets) in enumerate([(4, ["q_proj", "v_proj"]), (9, ["o_proj", "down_proj"]), (16, ["gate_proj"])]):
        path = make_adapter(folder / f"a{slot}", config, rank=rank, target_modules=targets, seed=slot)
        adapter = read_adapter(path, config.shape)
        placement, image = page_image(adapter, layout)
        its_pages = [next(pages) for _ in range(placement.num_pages)]
        storage.write_pages(its_pages, torch.from_numpy(image))
        lora.bind(slot, adapter.signature, its_pages)
    model = load_model(folder / "model", config, torch.float32)
    return EagerForward(model, storage, attention, lora)


def decode(rng, slots) -> StepPlan:
    spec = SampleSpec(GREEDY, [1], [], 0)
    pages = list(range(30))
    sequences = []
    for i, slot in enumerate(slots):
        start = rng.choice([0, 3, 40, 70])
        its_pages = [pages.pop() for _ in range(start // 16 + 1)]
        sequences.append(PlannedSequence(RequestId(str(i)), [rng.randrange(300)], start, its_pages, slot, spec))
    return StepPlan(1, tuple(sequences))


def test_replayed_steps_equal_eager_ones(world):
    rng = random.Random(0)
    recorder = StateRecorder(world.attention, world.lora, world.model)
    graphed = GraphedForward(world, [2, 4], recorder, lambda: CopiedStaging(CPU, 1 << 10))
    graphed.warm_up()
    assert graphed.num_recorded == 4
    eager_calls = []
    graphed._eager = type(
        "Counted", (), {**world.__dict__, "__call__": lambda self, plan: eager_calls.append(1) or world(plan)}
    )()
    for slots in ([0], [-1, -1], [1, -1, 2], [2, 2, 0, 1], [0, -1]):
        plan = decode(rng, slots)
        stored = world.storage.bytes.clone()
        want = world(plan).clone()
        world.storage.bytes.copy_(stored)
        assert torch.equal(graphed(plan), want), slots
    assert not eager_calls


def test_other_steps_are_launched_one_by_one(world):
    graphed = GraphedForward(world, [2], StateRecorder(), lambda: CopiedStaging(CPU))
    rng = random.Random(1)
    for plan in (decode(rng, [0, 1, -1]), StepPlan(0, (PlannedSequence(RequestId("p"), [1, 2, 3], 0, [0], 0, None),))):
        graphed._recorded = {(2, True): None, (2, False): None}  # would fail if it were asked for
        assert len(graphed(plan)) == sum(sequence.sample is not None for sequence in plan.sequences)


def test_sizes_end_with_the_largest_batch():
    assert graph_sizes(1) == [1]
    assert graph_sizes(16) == [1, 2, 4, 8, 16]
    assert graph_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert len(graph_sizes(256)) == 35
