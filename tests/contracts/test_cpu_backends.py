"""What the CPU backends promise beyond the contract: no bit depends on threads or company, and the work is cut evenly."""

from __future__ import annotations

import random

import numba
import numpy as np
import pytest
import torch
from backend_cases import CPU, Seq, batch_of, make_storage, put_adapter, rope_tables, scatter_pages, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.serving.backends.attention import cpu_attention as cpu_attention_module
from evenflow.serving.backends.attention.cpu_attention import CPUAttention
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora import cpu_lora
from evenflow.serving.backends.lora.cpu_lora import CPULoRA
from evenflow.serving.core.shape import SITES, ModelShape
from evenflow.serving.memory.layout import ArenaLayout

SHAPE = ModelShape(2, 52, 75, 12, 4, 32, 10)


def cpu_attention(num_threads: int) -> CPUAttention:
    storage = Storage(ArenaLayout(SHAPE, 4), 1, torch.float32, CPU)
    return CPUAttention(storage, *rope_tables(SHAPE, 4), 1.0, num_threads=num_threads)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 500), min_size=0, max_size=20), st.integers(1, 7), st.sampled_from([None, 1, 100]))
def test_cuts_give_every_head_to_one_thread_and_equal_shares(contexts, num_threads, window):
    work = cpu_attention(num_threads)._divide(np.array(contexts, np.int64), window)
    contexts = contexts if window is None else [min(context, window) for context in contexts]
    seen = np.zeros((len(contexts), SHAPE.num_kv_heads), int)
    shares = []
    for thread in range(num_threads):
        begin, end = work.cut_tasks[thread], work.cut_tasks[thread + 1]
        share = 0
        for task in range(begin, min(end + 1, len(contexts))):
            first = work.cut_heads[thread] if task == begin else 0
            last = work.cut_heads[thread + 1] if task == end else SHAPE.num_kv_heads
            seen[task, first:last] += 1
            share += max(0, last - first) * contexts[task]
        shares.append(share)
    assert (seen == 1).all()
    if contexts:
        # A cut is at most half a head away from the ideal, at each end.
        assert max(shares) - sum(shares) / num_threads <= max(contexts) + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_same_for_any_number_of_threads(dtype):
    seqs = [Seq(100, 1), Seq(3, 5), Seq(33, 1), Seq(0, 12)]
    qkv = torch.randn(19, SHAPE.q_width + 2 * SHAPE.kv_width, generator=torch.Generator().manual_seed(0)).to(dtype)
    outs = []
    for num_threads in (1, 2, 3, 8, 30):
        storage = make_storage(SHAPE, dtype, 16, 20)
        storage.elements.copy_(torch.randn(storage.elements.shape, generator=torch.Generator().manual_seed(1)))
        backend = CPUAttention(storage, *rope_tables(SHAPE, 128), 0.2, num_threads=num_threads)
        pages = scatter_pages(storage, seqs, random.Random(0))
        backend.plan(batch_of(storage, seqs, pages))
        outs.append(backend.run(1, qkv.clone()))
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert outs[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_rows_are_the_same_bit_for_bit_for_any_threads_and_company(dtype):
    """Alone, beside others of its adapter, or on another thread: a row's sums keep their order."""
    storage = make_storage(SHAPE, dtype, 16, 120)
    adapters = [put_adapter(storage, [[rank] * 7] * 2, list(range(first, 120)), rank) for rank, first in ((9, 0), (33, 20))]
    backends = [CPULoRA(storage, num_threads=n) for n in (1, 2, 3, 8)]
    for backend in backends:
        for slot, adapter in enumerate(adapters):
            backend.bind(slot, adapter.signature, adapter.pages)
    # More than are computed together, and less.
    seqs = [Seq(0, 1, slot) for slot in (1, 0, 1, 0, -1, 0, 0, 1, 1, 1, 0, 0, *[1] * 15)]
    for site, modules in SITES.items():
        inputs = SHAPE.module_widths(modules[0])[0]
        outputs = sum(SHAPE.module_widths(m)[1] for m in modules)
        x = torch.randn(len(seqs), inputs, generator=torch.Generator().manual_seed(0)).to(dtype)
        y = torch.randn(len(seqs), outputs, generator=torch.Generator().manual_seed(1)).to(dtype)
        results = []
        for backend in backends:
            out = y.clone()
            backend.plan(batch_of(storage, seqs, [[0]] * len(seqs)))
            backend.run(1, site, x, out)
            results.append(out)
        numba.set_num_threads(1)
        alone = y.clone()
        for t, seq in enumerate(seqs):
            backends[0].plan(batch_of(storage, [seq], [[0]]))
            backends[0].run(1, site, x[t : t + 1], alone[t : t + 1])
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        assert all(torch.equal(out, alone) for out in results)
        assert not torch.equal(alone, y)


def test_little_work_of_few_bytes_is_done_by_one_thread(monkeypatch):
    storage = make_storage(SHAPE, torch.bfloat16, 16, 120)
    adapters = [put_adapter(storage, [[rank] * 7] * 2, list(range(first, 120)), rank) for rank, first in ((9, 0), (33, 20))]
    backend = CPULoRA(storage, num_threads=2)
    for slot, adapter in enumerate(adapters):
        backend.bind(slot, adapter.signature, adapter.pages)
    monkeypatch.setattr(cpu_lora, "ONE_THREAD_BYTES", 2 * 9 * (384 + 52))
    monkeypatch.setattr(cpu_lora, "ONE_THREAD_MACS", 4 * 9 * (384 + 52))
    threads = numba.get_num_threads()
    for slots, is_small in (((0,) * 4, True), ((0,) * 5, False), ((0, 1), False), ((1,), False), ((-1, 0, -1), True)):
        backend.plan(batch_of(storage, [Seq(0, 1, slot) for slot in slots], [[0]] * len(slots)))
        assert backend._work["o"].is_small is is_small, slots
        backend.run(0, "o", torch.ones(len(slots), 384).bfloat16(), torch.ones(len(slots), 52).bfloat16())
        assert numba.get_num_threads() == threads


def test_warm_up_compiles_what_serving_calls():
    """After warm_up() a step finds its kernels: no new signature appears."""
    from evenflow.serving.kernels.attention_cpu import attend
    from evenflow.serving.kernels.lora_cpu import add_lora_rows
    from evenflow.serving.kernels.rope_cpu import rotate_and_write

    storage = make_storage(SHAPE, torch.float32, 16, 20)
    attention, lora = CPUAttention(storage, *rope_tables(SHAPE, 128), 0.2), CPULoRA(storage)
    attention.warm_up(), lora.warm_up()
    before = [len(kernel.signatures) for kernel in (attend, add_lora_rows, rotate_and_write)]
    assert min(before) > 0
    adapter = put_adapter(storage, [[2] * 7] * 2, list(range(10, 20)), 0)
    lora.bind(0, adapter.signature, adapter.pages)
    batch = batch_of(storage, [Seq(5, 1, 0), Seq(0, 12)], [[0], [1]])
    attention.plan(batch), lora.plan(batch)
    attention.run(0, torch.randn(13, SHAPE.q_width + 2 * SHAPE.kv_width))
    lora.run(0, "o", torch.randn(13, SHAPE.q_width), torch.randn(13, SHAPE.hidden_size))
    assert [len(kernel.signatures) for kernel in (attend, add_lora_rows, rotate_and_write)] == before


def test_an_adapter_with_rows_in_one_layer_only():
    """The kernel looks ahead at entries that have no rows in this layer."""
    storage = make_storage(SHAPE, torch.float32, 16, 120)
    first = put_adapter(storage, [[3] * 7, [0] * 7], list(range(40)), 1)
    second = put_adapter(storage, [[0] * 7, [3] * 7], list(range(40, 80)), 2)
    lora = CPULoRA(storage, num_threads=1)
    lora.bind(0, first.signature, first.pages)
    lora.bind(1, second.signature, second.pages)
    lora.plan(batch_of(storage, [Seq(0, 1, 0), Seq(0, 1, 1), Seq(0, 1, 0)], [[0]] * 3))
    x = torch.randn(3, SHAPE.q_width, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(3, SHAPE.hidden_size)
    lora.run(0, "o", x, y)
    assert not y[1].any()
    torch.testing.assert_close(y[[0, 2]].double(), first.delta(0, "o_proj", x[[0, 2]]), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page_tokens", [16, 32])
@pytest.mark.parametrize("window", [None, 1, 12, 50])
def test_chunks_through_torch_agree_with_rows(monkeypatch, dtype, page_tokens, window):
    """Both paths of attention, over stale pages of NaN: first chunks, later chunks, and decode rows beside them.

    Chunks with a window are computed in pieces.
    """
    monkeypatch.setattr(cpu_attention_module, "MAX_ROWS_BY_ROW", 8)
    seqs = [Seq(0, 20), Seq(37, 9), Seq(64, 1), Seq(0, 64), Seq(15, 40)]
    histories = [Seq(0, seq.start + seq.rows) for seq in seqs]
    total = [seq.start + seq.rows for seq in seqs]
    width = SHAPE.q_width + 2 * SHAPE.kv_width
    qkv = [torch.randn(n, width, generator=torch.Generator().manual_seed(n)).to(dtype) for n in total]
    outs = []
    for row_limit in (0, 16, 10**9):
        storage = make_storage(SHAPE, dtype, page_tokens, 40)
        backend = CPUAttention(storage, *rope_tables(SHAPE, 128), 0.2, row_limit=row_limit, windows=[None, window])
        pages = scatter_pages(storage, histories, random.Random(0))
        history = [(i, seq.start) for i, seq in enumerate(seqs) if seq.start]
        backend.plan(batch_of(storage, [Seq(0, n) for _, n in history], [pages[i] for i, _ in history]))
        backend.run(1, torch.cat([qkv[i][:n] for i, n in history]))
        backend.plan(batch_of(storage, seqs, pages))
        outs.append(backend.run(1, torch.cat([x[seq.start :] for x, seq in zip(qkv, seqs)])))
    assert outs[-1].isfinite().all()
    for out in outs[:-1]:
        torch.testing.assert_close(out, outs[-1], **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_scattered", [False, True])
def test_lora_products_agree_with_rows(dtype, is_scattered):
    """Segments of many rows: matrices where they lie, or copied where pages are scattered; modules missing, ranks mixed."""
    storage = make_storage(SHAPE, dtype, 16, 240)
    pages = list(range(240))
    if is_scattered:
        random.Random(0).shuffle(pages)
    ranks = [[5, 0, 33, 8, 1, 0, 40], [0, 3, 0, 0, 64, 7, 2]]
    adapters = [put_adapter(storage, ranks, pages[:120], 1), put_adapter(storage, ranks[::-1], pages[120:], 2)]
    backends = [CPULoRA(storage, num_threads=2, product_macs=macs) for macs in (1, 1 << 62)]
    for backend in backends:
        for slot, adapter in enumerate(adapters):
            backend.bind(slot, adapter.signature, adapter.pages)
        backend.plan(batch_of(storage, [Seq(0, 9, 1), Seq(0, 20, 0), Seq(0, 3), Seq(0, 12, 1)], [[0, 0]] * 4))
    for layer in range(2):
        for site, modules in SITES.items():
            inputs = SHAPE.module_widths(modules[0])[0]
            outputs = sum(SHAPE.module_widths(m)[1] for m in modules)
            x = torch.randn(44, inputs, generator=torch.Generator().manual_seed(0)).to(dtype)
            y = torch.randn(44, outputs, generator=torch.Generator().manual_seed(1)).to(dtype)
            by_product, by_row = y.clone(), y.clone()
            backends[0].run(layer, site, x, by_product)
            backends[1].run(layer, site, x, by_row)
            assert backends[0]._work[site].segments
            assert not len(backends[0]._work[site].token_rows)
            torch.testing.assert_close(by_product, by_row, **tolerance(dtype))
            assert not torch.equal(by_row, y)
