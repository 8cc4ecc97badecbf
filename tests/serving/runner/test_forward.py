"""A recorded decode step gives the logits of an eager one, for any number of rows, adapters and pages."""

from __future__ import annotations

import random

import pytest
import torch

from triton_interpreter import mend

pytest.importorskip("triton")

from evenflow.serving.adapters.page_image import page_image
from evenflow.serving.adapters.peft_reader import read_adapter
from evenflow.serving.backends.attention.triton_attention import AttentionBlocks, TritonAttention
from evenflow.serving.backends.devices.staging import CopiedStaging
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.triton_lora import TritonLoRA
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.plan import PlannedSequence, SampleSpec, StepPlan
from evenflow.serving.core.request import RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.memory.layout import ArenaLayout, place
from evenflow.serving.models.load import load_model
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model
from evenflow.serving.models.rope_table import rope_table
from evenflow.serving.runner.forward import CudaRecorder, EagerForward, GraphedForward, graph_sizes

mend()
CPU = torch.device("cpu")


def recorder_for(forward, device):
    """CUDA graphs on a GPU; on the CPU what stands for them."""
    return CudaRecorder() if device.type == "cuda" else StateRecorder(forward.attention, forward.lora, forward.model)


def staging_for(device):
    return lambda: CopiedStaging(device, 1 << 10)


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


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def world(request, tmp_path_factory):
    """Model, storage, backends; slots 0 to 2 are adapters of different ranks and modules."""
    device = torch.device(request.param)
    folder = tmp_path_factory.mktemp("model")
    config = make_model(folder / "model", num_hidden_layers=1)
    layout = ArenaLayout(config.shape, 4)
    storage = Storage(layout, 64, torch.float32, device)
    tables = rope_table(config.rope, config.shape.head_dim, 128)
    attention = TritonAttention(storage, *tables, config.shape.head_dim**-0.5, few=AttentionBlocks(16, 32, 32, 1, 1))
    lora = TritonLoRA(storage)
    pages = iter(range(30, 64))
    for slot, (rank, targets) in enumerate([(4, ["q_proj", "v_proj"]), (9, ["o_proj", "down_proj"]), (16, ["gate_proj"])]):
        path = make_adapter(folder / f"a{slot}", config, lora_rank=rank, target_modules=targets, seed=slot)
        adapter = read_adapter(path, config.shape)
        placement, image = page_image(adapter, layout)
        its_pages = [next(pages) for _ in range(placement.num_pages)]
        storage.write_pages(its_pages, torch.from_numpy(image))
        lora.bind(slot, adapter.signature, its_pages)
    model = load_model(folder / "model", config, torch.float32, device)
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
    device = world.storage.device
    graphed = GraphedForward(world, [2, 4], recorder_for(world, device), staging_for(device))
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
    graphed = GraphedForward(world, [2], StateRecorder(), staging_for(world.storage.device))
    rng = random.Random(1)
    for plan in (decode(rng, [0, 1, -1]), StepPlan(0, (PlannedSequence(RequestId("p"), [1, 2, 3], 0, [0], 0, None),))):
        graphed._recorded = {(2, True): None, (2, False): None}  # would fail if it were asked for
        assert len(graphed(plan)) == sum(sequence.sample is not None for sequence in plan.sequences)


def test_an_adapter_of_a_higher_rank_after_recording(world, tmp_path):
    """What lies between shrink and expand is found by address: it may move without a new recording."""
    device, storage = world.storage.device, world.storage
    graphed = GraphedForward(world, [2], recorder_for(world, device), staging_for(device))
    graphed.warm_up()
    before = world.lora._sums.data_ptr()
    signature = AdapterSignature(((100, 0, 0, 0, 0, 0, 0),))
    world.lora.bind(5, signature, range(30, 30 + place(storage.layout, signature).num_pages))
    rng = random.Random(3)
    plan = decode(rng, [5, 1])
    stored = storage.bytes.clone()
    want = world(plan).clone()
    storage.bytes.copy_(stored)
    assert world.lora._sums.data_ptr() != before
    assert torch.equal(graphed(plan), want)
    assert graphed.num_recorded == 2


@pytest.mark.gpu
def test_a_replayed_step_waits_for_the_device_only_at_its_end(world):
    device = world.storage.device
    if device.type != "cuda":
        pytest.skip("of the device")
    graphed = GraphedForward(world, [2], CudaRecorder(), staging_for(device))
    graphed.warm_up()
    plans = [decode(random.Random(7), slots) for slots in ([0, -1], [-1, -1], [0, 1, 2])]
    for forward in (graphed, world):  # the last plan has too many rows to be replayed
        for plan in plans:
            forward(plan)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for plan in plans:
                forward(plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_sizes_end_with_the_largest_batch():
    assert graph_sizes(1) == [1]
    assert graph_sizes(16) == [1, 2, 4, 8, 16]
    assert graph_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert len(graph_sizes(256)) == 35
