"""What every LoRA backend promises, against matrix products in fp64."""

from __future__ import annotations

import random

import pytest
import torch
from backend_cases import (
    DTYPES,
    Seq,
    batch_of,
    make_storage,
    on_device,
    on_one_thread,
    put_adapter,
    random_ranks,
    row_slots,
    tolerance,
)

from evenflow.bench.lora.baselines.lora_backends import BASELINE_LORA_BACKENDS, lora_backend
from evenflow.serving.backends.choose import LORA_BACKENDS
from evenflow.serving.core.shape import MODULES, SITES, ModelShape

SHAPES = {
    "lines": ModelShape(2, 128, 320, 4, 2, 32, 10),
    "odd-widths": ModelShape(2, 52, 75, 3, 1, 24, 10),
    "narrow": ModelShape(3, 8, 20, 2, 1, 8, 10),
}
RANKS = [0, 1, 3, 8, 33, 64]
one_thread = pytest.fixture(autouse=True)(on_one_thread)
backends = pytest.mark.parametrize("name", [*LORA_BACKENDS, *BASELINE_LORA_BACKENDS])
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))


class World:
    """Adapters of mixed ranks on scattered pages of an arena of NaN, bound to a backend."""

    def __init__(self, name, shape, dtype, ranks_by_slot, page_tokens=16, seed=0):
        rng = random.Random(seed)
        self.shape, self.dtype = shape, dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.storage = make_storage(shape, dtype, page_tokens, 1200)
        self.backend = on_device(lora_backend(name, self.storage))
        self.free = list(range(self.storage.num_pages))
        rng.shuffle(self.free)
        self.adapters = {}
        for slot, ranks in ranks_by_slot.items():
            self.bind(slot, ranks, seed=slot)

    def bind(self, slot, ranks, seed):
        adapter = put_adapter(self.storage, ranks, self.free, seed)
        self.free = self.free[len(adapter.pages) :]
        self.adapters[slot] = adapter
        self.backend.bind(slot, adapter.signature, adapter.pages)

    def widths(self, site):
        pairs = [self.shape.module_widths(m) for m in SITES[site]]
        return pairs[0][0], [out for _, out in pairs]

    def inputs(self, site, rows):
        width_in, widths_out = self.widths(site)
        x = torch.randn(rows, width_in, generator=self.generator).to(self.dtype)
        y = torch.randn(rows, sum(widths_out), generator=self.generator).to(self.dtype)
        return x, y

    def plan(self, seqs):
        pages = [[0] * 40 for _ in seqs]
        batch = batch_of(self.storage, seqs, pages)
        self.backend.plan(batch)
        return row_slots(batch)

    def expected(self, layer, site, x, y, slots):
        y = y.double().clone()
        column = 0
        for module, width in zip(SITES[site], self.widths(site)[1]):
            for t, slot in enumerate(slots):
                delta = self.adapters[slot].delta(layer, module, x[t]) if slot >= 0 else None
                if delta is not None:
                    y[t, column : column + width] += delta
            column += width
        return y


def mixed_world(name, shape, dtype, page_tokens=16):
    rng = random.Random(3)
    ranks = {slot: random_ranks(shape, rng, RANKS) for slot in range(5)}
    ranks[5] = [[8 if m in ("q_proj", "v_proj") else 0 for m in MODULES]] * shape.num_layers
    ranks[9] = [[0] * len(MODULES)] * shape.num_layers
    return World(name, shape, dtype, ranks, page_tokens)


MIXED = [
    Seq(3, 1, 2),
    Seq(9, 1),
    Seq(0, 17, 1),
    Seq(4, 1, 0),
    Seq(4, 1, 2),
    Seq(0, 5, 4),
    Seq(8, 3, 2),
    Seq(0, 2),
    Seq(1, 1, 5),
]
MIXED += [Seq(2, 1, 3), Seq(7, 1, 9), Seq(6, 2, 2)]


@backends
@dtypes
@shapes
@pytest.mark.parametrize("site", SITES)
def test_any_mix_of_ranks_and_missing_modules(name, dtype, shape, site):
    world = mixed_world(name, shape, dtype)
    slots = world.plan(MIXED)
    for layer in range(shape.num_layers):
        x, y = world.inputs(site, len(slots))
        want = world.expected(layer, site, x, y, slots)
        world.backend.run(layer, site, x, y)
        torch.testing.assert_close(y.double(), want, **tolerance(dtype))


@backends
def test_larger_pages(name):
    world = mixed_world(name, SHAPES["lines"], torch.bfloat16, page_tokens=32)
    slots = world.plan(MIXED)
    for site in SITES:
        x, y = world.inputs(site, len(slots))
        want = world.expected(1, site, x, y, slots)
        world.backend.run(1, site, x, y)
        torch.testing.assert_close(y.double(), want, **tolerance(torch.bfloat16))


@backends
@dtypes
def test_base_only_rows_and_missing_modules_keep_every_bit(name, dtype):
    world = mixed_world(name, SHAPES["odd-widths"], dtype)
    slots = world.plan(MIXED)
    x, y = world.inputs("qkv", len(slots))
    y.view(torch.int16 if dtype == torch.bfloat16 else torch.int32)[slots < 0] = -1  # a NaN with a payload
    before = y.clone()
    world.backend.run(0, "qkv", x, y)
    q, k, _ = world.widths("qkv")[1]
    assert torch.equal(y[slots < 0].view(torch.uint8), before[slots < 0].view(torch.uint8))
    assert torch.equal(y[slots == 9].view(torch.uint8), before[slots == 9].view(torch.uint8))
    only_q_and_v = y[slots == 5]
    assert torch.equal(only_q_and_v[:, q : q + k], before[slots == 5][:, q : q + k])
    assert not torch.equal(only_q_and_v[:, :q], before[slots == 5][:, :q])
    assert not torch.equal(only_q_and_v[:, q + k :], before[slots == 5][:, q + k :])


@backends
@dtypes
def test_a_row_does_not_depend_on_the_batch(name, dtype):
    """Decode rows: alone, in the mix, beside three others of its adapter. The order of sums may differ, no more."""
    shape = SHAPES["odd-widths"]
    world = mixed_world(name, shape, dtype)
    seqs = [Seq(4, 1, slot) for slot in (0, 2, 2, 4, 2, 2, -1, 1, 2, 5)]
    for site in SITES:
        slots = world.plan(seqs)
        x, y = world.inputs(site, len(slots))
        mixed = y.clone()
        world.backend.run(1, site, x, mixed)
        for t, seq in enumerate(seqs):
            world.plan([seq])
            alone = y[t : t + 1].clone()
            world.backend.run(1, site, x[t : t + 1], alone)
            torch.testing.assert_close(alone[0], mixed[t], **tolerance(dtype))


@backends
@dtypes
def test_rows_may_lie_apart(name, dtype):
    """x and y are often column ranges of a wider buffer."""
    world = mixed_world(name, SHAPES["lines"], dtype)
    slots = world.plan(MIXED)
    x, y = world.inputs("o", len(slots))
    wide_x, wide_y = torch.full((len(slots), 300), torch.nan, dtype=dtype), torch.full((len(slots), 300), 7.0, dtype=dtype)
    view_x, view_y = wide_x[:, 5 : 5 + x.shape[1]], wide_y[:, 3 : 3 + y.shape[1]]
    view_x.copy_(x), view_y.copy_(y)
    world.backend.run(0, "o", view_x, view_y)
    torch.testing.assert_close(view_y.double(), world.expected(0, "o", x, y, slots), **tolerance(dtype))
    assert (wide_y[:, :3] == 7).all()
    assert (wide_y[:, 3 + y.shape[1] :] == 7).all()


@backends
@dtypes
def test_long_prefill_of_several_adapters(name, dtype):
    """Many rows per adapter may take another path (matrix products); the answer stays."""
    shape = ModelShape(1, 512, 768, 8, 4, 64, 10)
    world = World(name, shape, dtype, {0: [[16] * 7], 1: [[4, 0, 64, 8, 8, 0, 3]]})
    slots = world.plan([Seq(0, 300, 0), Seq(0, 1, 1), Seq(0, 250, 1), Seq(0, 3), Seq(0, 290, 0), Seq(0, 1, 0)])
    for site in SITES:
        x, y = world.inputs(site, len(slots))
        want = world.expected(0, site, x, y, slots)
        base = y[slots < 0].clone()
        world.backend.run(0, site, x, y)
        torch.testing.assert_close(y.double(), want, **tolerance(dtype))
        assert torch.equal(y[slots < 0], base)


@backends
def test_a_slot_can_be_bound_again(name):
    shape = SHAPES["lines"]
    world = World(name, shape, torch.float32, {0: [[4] * 7] * 2, 70: [[2] * 7] * 2})
    for slot, rank in ((0, 4), (0, 9), (70, 2), (70, 1), (400, 3)):
        world.bind(slot, [[rank] * 7] * 2, seed=rank + 10)
        slots = world.plan([Seq(0, 1, slot), Seq(0, 1, 0), Seq(0, 1, 70)])
        x, y = world.inputs("gate_up", 3)
        want = world.expected(0, "gate_up", x, y, slots)
        world.backend.run(0, "gate_up", x, y)
        torch.testing.assert_close(y.double(), want, **tolerance(torch.float32))


@backends
def test_a_step_without_adapters_touches_nothing(name):
    world = mixed_world(name, SHAPES["lines"], torch.float32)
    world.plan([Seq(0, 4), Seq(0, 1)])
    x, y = world.inputs("down", 5)
    before = y.clone()
    world.backend.run(0, "down", x, y)
    assert torch.equal(y, before)


@backends
@dtypes
def test_nan_in_an_adapter_stays_with_its_rows(name, dtype):
    shape = SHAPES["lines"]
    world = World(name, shape, dtype, {0: [[8] * 7] * 2, 1: [[8] * 7] * 2})
    bad = world.adapters[0]
    for page in bad.pages:
        world.storage.write_pages([page], torch.full((1, world.storage.layout.page_bytes), 0xFF, dtype=torch.uint8))
    slots = world.plan([Seq(0, 1, 0), Seq(0, 1, 1), Seq(0, 1, 0), Seq(0, 1), Seq(0, 6, 1)])
    x, y = world.inputs("o", len(slots))
    want = world.expected(0, "o", x, y, slots)
    world.backend.run(0, "o", x, y)
    assert y[slots == 0].isnan().all()
    torch.testing.assert_close(y[slots != 0].double(), want[slots != 0], **tolerance(dtype))


@backends
def test_adapters_come_and_go_from_step_to_step(name):
    """Whatever a backend keeps between steps follows the batch, also when a slot gets another adapter."""
    shape, rng = SHAPES["lines"], random.Random(5)
    world = World(name, shape, torch.float32, {slot: random_ranks(shape, rng, RANKS) for slot in range(7)})
    for step in range(12):
        if step in (4, 8):
            world.bind(step % 7, random_ranks(shape, rng, RANKS), seed=100 + step)
        seqs = [Seq(1, 1 if rng.random() < 0.8 else 30, rng.choice([-1, *range(7)])) for _ in range(rng.randint(1, 6))]
        for site in SITES:
            slots = world.plan(seqs)
            x, y = world.inputs(site, len(slots))
            want = world.expected(step % 2, site, x, y, slots)
            world.backend.run(step % 2, site, x, y)
            torch.testing.assert_close(y.double(), want, **tolerance(torch.float32))
