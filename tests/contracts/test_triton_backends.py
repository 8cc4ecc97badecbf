"""What the Triton backends promise beyond the contract: cut contexts, steps of fixed size, any company, large arenas."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from backend_cases import (
    CPU,
    Seq,
    attend_exactly,
    batch_of,
    make_storage,
    plan_of,
    put_adapter,
    random_ranks,
    rope_tables,
    scatter_pages,
    tolerance,
)
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from evenflow.base.errors import ConfigError
from evenflow.serving.backends.attention.attention_tiles import make_tiles
from evenflow.serving.backends.attention.triton_attention import AttentionBlocks, TritonAttention
from evenflow.serving.backends.devices.batch import Batch, build_fixed_batch
from evenflow.serving.backends.devices.staging import DirectStaging
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.lora_segments import cut, token_rows_by_adapter
from evenflow.serving.backends.lora.triton_lora import LoRABlocks, TritonLoRA
from evenflow.serving.core.plan import SampleSpec, StepPlan
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.core.shape import SITES, ModelShape
from evenflow.serving.memory.layout import ArenaLayout

SHAPE = ModelShape(2, 52, 75, 6, 2, 16, 10)
SHORT_CUTS = AttentionBlocks(16, 16, 32, 1, 1), AttentionBlocks(32, 32, 64, 1, 1)
SMALL_BLOCKS = LoRABlocks(16, 16, 32, 64, 32, 1, 1), LoRABlocks(32, 32, 32, 64, 64, 1, 1)
"""The proportions of a GPU's blocks: several ranges, several blocks of ranks and columns."""


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 90), st.integers(1, 40)), min_size=1, max_size=8),
    st.integers(1, 9),
    st.sampled_from([16, 32, 64]),
    st.sampled_from([None, 1, 16, 40, 1000]),
)
def test_tiles_cover_every_row_and_every_token_it_sees_once(sequences, tile_rows, split, window):
    starts, counts = (np.array(column) for column in zip(*sequences))
    rows = np.cumsum(counts) - counts
    work = make_tiles(rows, counts, starts, 100 * np.arange(len(starts)), tile_rows, split, window)
    seen: dict[int, list[tuple[int, int]]] = {}
    parts = []
    for first, height, position, begin, end, pages, part, _ in work.tiles.tolist():
        sequence = pages // 100
        assert 1 <= height <= tile_rows
        seen_from = 0 if window is None else max(0, position + 1 - window)
        assert begin % split == 0 or begin == seen_from // 16 * 16
        assert end > seen_from
        assert position == starts[sequence] + first - rows[sequence]
        parts += [part] if part >= 0 else []
        for row in range(first, first + height):
            seen.setdefault(row, []).append((begin, end))
    for s, (start, count) in enumerate(zip(starts, counts)):
        for row in range(rows[s], rows[s] + count):
            if start < 0:
                assert row not in seen
                continue
            ranges = sorted(seen[row])
            if window is None:
                assert ranges[0][0] == 0
            else:
                assert ranges[0][0] <= max(0, start + row - rows[s] + 1 - window)
            assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
            assert ranges[-1][1] > start + row - rows[s]
    assert parts == list(range(work.num_parts))
    by_part = {tile[6]: tile for tile in work.tiles.tolist() if tile[6] >= 0}
    merged = {}
    for row, inside, first, count in work.merges.tolist():
        assert row not in merged
        merged[row] = count
        assert count > 1
        for part in range(first, first + count):
            assert by_part[part][0] + inside == row
        assert [tuple(by_part[part][3:5]) for part in range(first, first + count)] == sorted(seen[row])
    assert set(merged) == {row for row, ranges in seen.items() if len(ranges) > 1}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(1, 40)), max_size=12), st.integers(1, 16))
def test_segments_hold_every_row_with_an_adapter_once(sequences, most_rows):
    slots = np.array([slot for slot, _ in sequences], np.int32)
    row_starts = np.cumsum([0, *(rows for _, rows in sequences)])
    found = {}
    place = 0
    for decode in (True, False):
        rows, its_slots = token_rows_by_adapter(slots, row_starts, decode)
        segments = cut(its_slots, place, most_rows)
        for first, count, slot in zip(segments.first, segments.count, segments.slot):
            assert 1 <= count <= most_rows
            for row in rows[first - place : first - place + count]:
                assert int(row) not in found
                found[int(row)] = (int(slot), decode)
        place += len(rows)
    wanted = {}
    for s, (slot, rows) in enumerate(sequences):
        if slot >= 0:
            wanted |= dict.fromkeys(range(row_starts[s], row_starts[s] + rows), (slot, rows == 1))
    assert found == wanted


def attention_world(seqs, dtype, shape=SHAPE, num_pages=60):
    """Storage with random K and V of the histories, and the rows' qkv."""
    generator = torch.Generator().manual_seed(5)
    storage = make_storage(shape, dtype, 16, num_pages)
    pages = scatter_pages(storage, seqs, random.Random(2))
    view = storage.elements.view(num_pages, shape.num_layers, 2, 16, shape.kv_width)
    for seq, its_pages in zip(seqs, pages):
        for token in range(seq.start):
            view[its_pages[token // 16], :, :, token % 16] = torch.randn(
                (shape.num_layers, 2, shape.kv_width), generator=generator
            ).to(dtype)
    rows = sum(seq.rows for seq in seqs)
    return storage, pages, torch.randn(rows, shape.q_width + 2 * shape.kv_width, generator=generator).to(dtype)


CUT = [Seq(70, 1), Seq(32, 1), Seq(60, 20), Seq(31, 2)]


@pytest.mark.parametrize(("dtype", "window"), [(torch.float32, None), (torch.bfloat16, None), (torch.float32, 35)])
def test_cut_contexts_give_the_same_attention_whatever_the_company(dtype, window):
    storage, pages, qkv = attention_world(CUT, dtype)
    tables = rope_tables(SHAPE, 160)
    backend = TritonAttention(storage, *tables, 0.3, *SHORT_CUTS, windows=[None, window])
    backend.plan(batch_of(storage, CUT, pages))
    out = backend.run(1, qkv.clone()).split([seq.rows for seq in CUT])
    view = storage.elements.view(-1, 2, 2, 16, 2, 16)
    rotated = qkv.clone()
    whole = TritonAttention(storage, *tables, 0.3, windows=[None, window])
    whole.plan(batch_of(storage, CUT, pages))
    uncut = whole.run(1, rotated).split([seq.rows for seq in CUT])
    first = 0
    for i, seq in enumerate(CUT):
        context = seq.start + seq.rows
        k, v = (view[pages[i], 1, half].reshape(-1, 2, 16)[:context] for half in (0, 1))
        q = rotated[first : first + seq.rows, : SHAPE.q_width].unflatten(1, (6, 16))
        want = attend_exactly(q, k, v, seq.start, 0.3, window).flatten(1)
        torch.testing.assert_close(out[i].double(), want, **tolerance(dtype))
        torch.testing.assert_close(uncut[i].double(), want, **tolerance(dtype))
        first += seq.rows
    for i in (0, 2):
        backend.plan(batch_of(storage, [CUT[i]], [pages[i]]))
        start = sum(seq.rows for seq in CUT[:i])
        alone = backend.run(1, qkv[start : start + CUT[i].rows].clone())
        assert torch.equal(alone, out[i])


def decode_plan(seqs, pages) -> StepPlan:
    plan = plan_of(seqs, pages)
    return StepPlan(0, tuple(_sampled(sequence) for sequence in plan.sequences))


def _sampled(sequence):
    return type(sequence)(
        sequence.request_id,
        sequence.token_ids,
        sequence.start,
        sequence.pages,
        sequence.adapter_slot,
        SampleSpec(GREEDY, [0], [], 0),
    )


def fixed_batch(seqs, pages, num_rows) -> Batch:
    return build_fixed_batch(decode_plan(seqs, pages), num_rows, 16, DirectStaging())


def test_a_step_of_fixed_size_gives_the_same_bits_and_touches_nothing_else():
    seqs = [Seq(100, 1, 1), Seq(3, 1), Seq(32, 1, 0), Seq(15, 1, 1), Seq(70, 1, 7)]
    storage, pages, qkv = attention_world(seqs, torch.float32)
    lora = TritonLoRA(storage, *SMALL_BLOCKS)
    rng = random.Random(1)
    free = [page for page in range(60) if page not in {p for its in pages for p in its}]
    for slot in (0, 1, 7):
        adapter = put_adapter(storage, random_ranks(SHAPE, rng, [0, 2, 5]), free, slot)
        free = free[len(adapter.pages) :]
        lora.bind(slot, adapter.signature, adapter.pages)
    attention = TritonAttention(storage, *rope_tables(SHAPE, 160), 0.3, *SHORT_CUTS, windows=[None, 35])
    x, y = torch.randn(5, SHAPE.hidden_size), torch.randn(5, 150)
    results = []
    for num_rows in (None, 5, 8):
        stored = storage.bytes.clone()
        batch = batch_of(storage, seqs, pages) if num_rows is None else fixed_batch(seqs, pages, num_rows)
        lora.plan(batch), attention.plan(batch)
        rows = num_rows or 5
        padded = [torch.full((rows, t.shape[1]), torch.nan) for t in (qkv, x, y)]
        for wide, t in zip(padded, (qkv, x, y)):
            wide[:5] = t
        out = attention.run(1, padded[0])
        lora.run(1, "gate_up", padded[1], padded[2])
        assert padded[0][5:].isnan().all()
        assert padded[2][5:].isnan().all()
        results.append((out[:5], padded[2][:5], storage.bytes.clone()))
        storage.bytes.copy_(stored)
    assert not torch.equal(results[0][1], y)
    for result in results[1:]:
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(result, results[0]))


def test_capacities_of_a_fixed_step_depend_on_its_rows_alone():
    """A CUDA graph reads every array at the place where it lay at capture."""

    class Recorder(DirectStaging):
        def __init__(self):
            self.sizes = []

        def add(self, array, capacity=None):
            self.sizes.append((array.dtype, len(array) if capacity is None else capacity))
            return super().add(array, capacity)

    storage = make_storage(SHAPE, torch.float32, 16, 60)
    lora = TritonLoRA(storage, *SMALL_BLOCKS)
    adapter = put_adapter(storage, [[9] * 7] * 2, list(range(60)), 0)
    lora.bind(0, adapter.signature, adapter.pages)
    attention = TritonAttention(storage, *rope_tables(SHAPE, 160), 0.3, *SHORT_CUTS, windows=[None, 35])
    sizes = []
    for seqs in ([Seq(100, 1, 0)] * 4, [Seq(0, 1)], []):
        recorder = Recorder()
        batch = build_fixed_batch(decode_plan(seqs, [list(range(7))] * 4), 4, 16, recorder)
        lora.plan(batch), attention.plan(batch)
        sizes.append(recorder.sizes)
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize("seed", range(3))
def test_lora_of_small_blocks_over_random_ranks(seed):
    """Several ranges, blocks of ranks and of columns; a decode row has the same bits alone and in the mix."""
    rng = random.Random(seed)
    shape = ModelShape(2, rng.randrange(20, 120), rng.randrange(20, 150), 4, rng.choice([1, 2, 4]), 8 * rng.randrange(1, 4), 10)
    storage = make_storage(shape, torch.float32, 16, 700)
    lora = TritonLoRA(storage, *SMALL_BLOCKS)
    free, adapters = list(range(700)), {}
    rng.shuffle(free)
    for slot in range(4):
        adapters[slot] = put_adapter(storage, random_ranks(shape, rng, [0, 1, 4, 17, 40]), free, slot)
        free = free[len(adapters[slot].pages) :]
        lora.bind(slot, adapters[slot].signature, adapters[slot].pages)
    seqs = [Seq(1, rng.choice([1, 1, 1, 3, 40]), rng.randrange(-1, 4)) for _ in range(9)]
    batch = batch_of(storage, seqs, [[0, 1, 2]] * 9)
    slots = np.repeat(batch.adapter_slots, np.diff(batch.row_starts))
    site = rng.choice(list(SITES))
    widths = [shape.module_widths(module) for module in SITES[site]]
    x = torch.randn(len(slots), widths[0][0])
    y = torch.randn(len(slots), sum(out for _, out in widths))
    want = y.double().clone()
    for t, slot in enumerate(slots):
        column = 0
        for module, (_, width) in zip(SITES[site], widths):
            delta = adapters[slot].delta(1, module, x[t]) if slot >= 0 else None
            if delta is not None:
                want[t, column : column + width] += delta
            column += width
    lora.plan(batch)
    out = y.clone()
    lora.run(1, site, x, out)
    torch.testing.assert_close(out.double(), want, **tolerance(torch.float32))
    row = 0
    for seq in seqs:
        if seq.rows == 1:
            lora.plan(batch_of(storage, [seq], [[0]]))
            alone = y[row : row + 1].clone()
            lora.run(1, site, x[row : row + 1], alone)
            assert torch.equal(alone[0], out[row])
            break
        row += seq.rows


def test_an_arena_of_more_than_2_to_the_31_elements():
    """Page numbers must be widened before they are multiplied. The system commits only the pages that are touched."""
    shape = ModelShape(2, 64, 80, 4, 2, 64, 10)
    layout = ArenaLayout(shape, 2)
    last = 2**31 // (layout.page_bytes // 2) + 2
    storage = Storage(layout, last + 1, torch.bfloat16, CPU)
    assert storage.elements.numel() > 2**31
    backend = TritonAttention(storage, *rope_tables(shape, 64), 0.2)
    small = Storage(layout, 4, torch.bfloat16, CPU)
    reference = TritonAttention(small, *rope_tables(shape, 64), 0.2)
    qkv = torch.randn(20, shape.q_width + 2 * shape.kv_width).to(torch.bfloat16)
    outs = []
    for attention, store, pages in ((backend, storage, [last, last - 1]), (reference, small, [1, 0])):
        attention.plan(batch_of(store, [Seq(0, 20)], [pages]))
        outs.append(attention.run(1, qkv.clone()))
    assert torch.equal(outs[0], outs[1])
    assert storage.kv_rows[layout.kv_row(last, 1, 0, 3)].any()

    adapter = put_adapter(storage, [[4] * 7] * 2, list(range(last - 1, last + 1)) + list(range(8)), 0)
    lora = TritonLoRA(storage)
    lora.bind(0, adapter.signature, adapter.pages)
    lora.plan(batch_of(storage, [Seq(0, 1, 0)], [[0]]))
    x, y = torch.randn(1, 64).bfloat16(), torch.zeros(1, 160).bfloat16()
    lora.run(0, "gate_up", x, y)
    want = torch.cat([adapter.delta(0, module, x[0]) for module in ("gate_proj", "up_proj")])
    torch.testing.assert_close(y[0].double(), want, **tolerance(torch.bfloat16))


def test_what_they_cannot_do_is_refused():
    storage = Storage(ArenaLayout(SHAPE, 2), 2, torch.float16, CPU)
    with pytest.raises(ConfigError, match="float16"):
        TritonLoRA(storage)
    with pytest.raises(ConfigError, match="float16"):
        TritonAttention(storage, *rope_tables(SHAPE, 4), 1.0)
