"""What every attention backend promises, against attention written out in fp64."""

from __future__ import annotations

import random

import pytest
import torch
from backend_cases import (
    CPU,
    DTYPES,
    Seq,
    attend_exactly,
    batch_of,
    make_storage,
    on_device,
    on_one_thread,
    rope_tables,
    rotate_exactly,
    scatter_pages,
    tolerance,
    write_history,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenflow.serving.backends.choose import ATTENTION_BACKENDS, choose
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.memory.layout import K, V

SHAPES = {
    "gqa-64": ModelShape(2, 48, 80, 8, 2, 64, 10),
    "mha-32": ModelShape(3, 64, 96, 3, 3, 32, 10),
    "group-of-7": ModelShape(2, 48, 80, 7, 1, 96, 10),
    "group-of-5-of-16": ModelShape(2, 48, 80, 10, 2, 16, 10),
    "mqa-128": ModelShape(2, 48, 80, 4, 1, 128, 10),
    "odd-48": ModelShape(2, 48, 80, 6, 2, 48, 10),
}
TINY = ModelShape(2, 24, 40, 4, 2, 8, 10)
MIXED = [Seq(0, 1), Seq(15, 1), Seq(16, 1), Seq(0, 37), Seq(70, 1), Seq(31, 5), Seq(64, 16), Seq(5, 8), Seq(0, 16), Seq(3, 33)]
MAX_LEN = 128

one_thread = pytest.fixture(autouse=True)(on_one_thread)
backends = pytest.mark.parametrize("name", list(ATTENTION_BACKENDS))
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))


class World:
    """Sequences with their history in an arena of NaN, a backend, and what attention has to give."""

    def __init__(self, name, shape, dtype, seqs, page_tokens=16, seed=0, layer=1, windows=(), **options):
        rng = random.Random(seed)
        self.shape, self.dtype, self.seqs, self.layer = shape, dtype, seqs, layer
        generator = torch.Generator().manual_seed(seed)
        self.storage = make_storage(shape, dtype, page_tokens, 80)
        self.pages = scatter_pages(self.storage, seqs, rng)
        self.tables = rope_tables(shape, MAX_LEN)
        self.scale = shape.head_dim**-0.5
        self.windows = windows or [None] * shape.num_layers
        self.softcap = options.get("softcap")
        make = ATTENTION_BACKENDS.load(name)
        self.backend = on_device(make(self.storage, *self.tables, self.scale, windows=windows, **options))
        width = shape.q_width + 2 * shape.kv_width
        self.qkv = [(torch.randn(s.start + s.rows, width, generator=generator)).to(dtype) for s in seqs]
        for i, seq in enumerate(seqs):
            _, k, v = self.rotated(i)
            write_history(self.storage, layer, self.pages[i], k[: seq.start], v[: seq.start])

    def rotated(self, i):
        """q, k (both rotated, in fp64) and v of sequence i from position 0."""
        shape, qkv = self.shape, self.qkv[i]
        q, k, v = qkv.split([shape.q_width, shape.kv_width, shape.kv_width], dim=1)
        positions = torch.arange(len(qkv))
        q = rotate_exactly(q.unflatten(1, (shape.num_heads, shape.head_dim)), positions, self.tables)
        k = rotate_exactly(k.unflatten(1, (shape.num_kv_heads, shape.head_dim)), positions, self.tables)
        return q, k, v.unflatten(1, (shape.num_kv_heads, shape.head_dim))

    def run(self, chosen=None):
        """Run a step of the chosen sequences (all by default); outputs by sequence."""
        chosen = range(len(self.seqs)) if chosen is None else chosen
        seqs = [self.seqs[i] for i in chosen]
        self.backend.plan(batch_of(self.storage, seqs, [self.pages[i] for i in chosen]))
        qkv = torch.cat([self.qkv[i][self.seqs[i].start :] for i in chosen])
        return self.backend.run(self.layer, qkv).split([s.rows for s in seqs])

    def expected(self, i):
        q, k, v = self.rotated(i)
        # q and k are rounded to the model's dtype after the rotation, as in every model.
        q, k, start = q.to(self.dtype), k.to(self.dtype), self.seqs[i].start
        return attend_exactly(q[start:], k, v, start, self.scale, self.windows[self.layer], self.softcap).flatten(1)

    def forget(self):
        """Overwrite what lies before every window of ``layer`` with NaN, in pages that no row needs, and lose their numbers."""
        window, page_tokens = self.windows[self.layer], self.storage.layout.page_tokens
        for pages, seq in zip(self.pages, self.seqs):
            for i in range(max(0, seq.start + 1 - window) // page_tokens):
                self.storage.write_pages([pages[i]], torch.full((1, self.storage.layout.page_bytes), 255, dtype=torch.uint8))
                pages[i] = 0


@backends
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_any_mix_of_chunks_and_decode_rows(name, dtype, shape):
    world = World(name, shape, dtype, MIXED)
    for i, out in enumerate(world.run()):
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), world.expected(i), **tolerance(dtype))


@backends
@dtypes
@pytest.mark.parametrize("page_tokens", [32, 64])
def test_larger_pages(name, dtype, page_tokens):
    world = World(name, SHAPES["gqa-64"], dtype, MIXED, page_tokens)
    for i, out in enumerate(world.run()):
        torch.testing.assert_close(out.double(), world.expected(i), **tolerance(dtype))


@backends
@dtypes
def test_writes_its_own_rows_and_nothing_else(name, dtype):
    world = World(name, SHAPES["gqa-64"], dtype, MIXED)
    layout, storage = world.storage.layout, world.storage
    before = storage.bytes.clone()
    world.run()
    written = torch.zeros(len(storage.kv_rows), dtype=torch.bool)
    for i, seq in enumerate(world.seqs):
        _, k, v = world.rotated(i)
        for token in range(seq.start, seq.start + seq.rows):
            place = (world.pages[i][token // layout.page_tokens], world.layer)
            for half, want in ((K, k), (V, v)):
                row = layout.kv_row(*place, half, token % layout.page_tokens)
                written[row] = True
                torch.testing.assert_close(
                    storage.kv_rows[row].double().cpu(), want[token].flatten().double(), **tolerance(dtype)
                )
    untouched = storage.bytes.view(len(written), -1)[~written]
    assert torch.equal(untouched, before.view(len(written), -1)[~written])


@backends
@dtypes
def test_a_row_does_not_depend_on_the_batch(name, dtype):
    """Bit for bit: alone, in the mix, or in another order."""
    world = World(name, SHAPES["gqa-64"], dtype, MIXED)
    mixed = world.run()
    order = list(range(len(MIXED)))
    random.Random(1).shuffle(order)
    for i, out in zip(order, world.run(order)):
        assert torch.equal(out, mixed[i])
    for i in range(len(MIXED)):
        assert torch.equal(world.run([i])[0], mixed[i])


@backends
@pytest.mark.parametrize("chunks", [[50], [1] * 50, [20, 30], [7, 1, 8, 9, 16, 9], [49, 1]])
def test_chunking_changes_nothing_but_rounding(name, chunks):
    shape, layer = SHAPES["gqa-64"], 1
    world = World(name, shape, torch.float32, [Seq(0, 50)])
    rows, done = [], 0
    for chunk in chunks:
        world.backend.plan(batch_of(world.storage, [Seq(done, chunk)], world.pages))
        rows.append(world.backend.run(layer, world.qkv[0][done : done + chunk].clone()))
        done += chunk
    torch.testing.assert_close(torch.cat(rows).double(), world.expected(0), **tolerance(torch.float32))


@backends
def test_layers_do_not_mix(name):
    """One plan serves all layers; each reads its own K and V."""
    shape = SHAPES["mha-32"]
    world = World(name, shape, torch.float32, [Seq(0, 20), Seq(0, 3)])
    world.backend.plan(batch_of(world.storage, world.seqs, world.pages))
    outs = [world.backend.run(layer, torch.cat(world.qkv) * (layer + 1)) for layer in range(shape.num_layers)]
    world.backend.plan(batch_of(world.storage, [Seq(19, 1), Seq(2, 1)], world.pages))
    last = torch.stack([world.qkv[0][-1], world.qkv[1][-1]])
    for layer in range(shape.num_layers):
        again = world.backend.run(layer, last * (layer + 1))
        torch.testing.assert_close(again, outs[layer][[19, 22]], **tolerance(torch.float32))


@backends
def test_large_scores_do_not_overflow(name):
    world = World(name, SHAPES["gqa-64"], torch.float32, [Seq(40, 1), Seq(0, 20)])
    world.scale = 30.0
    world.backend = on_device(ATTENTION_BACKENDS.load(name)(world.storage, *world.tables, world.scale))
    for i, out in enumerate(world.run()):
        # Scores in the thousands: a rounding of 1e-7 of the score moves the weight by 1e-4.
        torch.testing.assert_close(out.double(), world.expected(i), rtol=1e-2, atol=1e-2)


@backends
@dtypes
def test_nan_in_a_sequence_reaches_its_output_and_no_other(name, dtype):
    """A NaN must neither be swallowed by a maximum or an exponential, nor spread."""
    world = World(name, SHAPES["gqa-64"], dtype, [Seq(20, 1), Seq(20, 1), Seq(4, 12), Seq(4, 12)])
    shape = world.shape
    for i in (0, 2):
        world.qkv[i][-1, shape.q_width : shape.q_width + shape.kv_width] = torch.nan
    outs = world.run()
    for i in (0, 2):
        assert outs[i][-1].isnan().all()
    for i in (1, 3):
        torch.testing.assert_close(outs[i].double(), world.expected(i), **tolerance(dtype))


WINDOWS = [1, 5, 16, 17, 40, 100, 1000]
"""One token; less than a page; a page; over its edge; some pages; nearly all of the longest context; more than there is."""


@backends
@dtypes
@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_hides_what_lies_before_it(name, dtype, window):
    """The layer beside it sees everything; pages outside the window are gone."""
    world = World(name, SHAPES["gqa-64"], dtype, MIXED, windows=[None, window])
    before = World(name, SHAPES["gqa-64"], dtype, MIXED, windows=[None, window], layer=0)
    world.forget()
    for i, (out, whole) in enumerate(zip(world.run(), before.run())):
        torch.testing.assert_close(out.double(), world.expected(i), **tolerance(dtype))
        torch.testing.assert_close(whole.double(), before.expected(i), **tolerance(dtype))


@backends
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.builds(Seq, st.integers(0, 90), st.integers(1, 30)), min_size=1, max_size=3),
    st.integers(1, 70),
    st.sampled_from([16, 32]),
    st.sampled_from([None, 3.0]),
)
def test_any_window_over_any_sequences(name, seqs, window, page_tokens, softcap):
    world = World(name, SHAPES["group-of-5-of-16"], torch.float32, seqs, page_tokens, windows=[window, window], softcap=softcap)
    world.forget()
    for i, out in enumerate(world.run()):
        torch.testing.assert_close(out.double(), world.expected(i), **tolerance(torch.float32))


@backends
def test_a_row_with_a_window_does_not_depend_on_the_batch(name):
    world = World(name, SHAPES["gqa-64"], torch.float32, MIXED, windows=[20, 20])
    for i, out in enumerate(world.run()):
        assert torch.equal(world.run([i])[0], out)


@backends
@dtypes
@pytest.mark.parametrize("softcap", [0.3, 50.0])
def test_scores_are_capped(name, dtype, softcap):
    world = World(name, SHAPES["gqa-64"], dtype, [Seq(90, 1), Seq(0, 20), Seq(37, 1)], softcap=softcap)
    for i, out in enumerate(world.run()):
        torch.testing.assert_close(out.double(), world.expected(i), **tolerance(dtype))


@dtypes
def test_the_chosen_backend_serves_head_dims_that_are_no_multiple_of_16(dtype):
    name = choose(CPU, dtype, TINY).attention
    world = World(name, TINY, dtype, MIXED)
    for i, out in enumerate(world.run()):
        torch.testing.assert_close(out.double(), world.expected(i), **tolerance(dtype))
