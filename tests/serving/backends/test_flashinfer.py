"""What FlashInfer is given: held against its documented semantics, written out in torch, since it runs on GPUs only."""

from __future__ import annotations

import random
import sys
import types

import pytest
import torch

from triton_interpreter import mend

pytest.importorskip("triton")

from evenflow.base.errors import ConfigError
from evenflow.serving.backends.choose import ATTENTION_BACKENDS, LORA_BACKENDS, by_name
from evenflow.serving.backends.devices.batch import build_batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.core.plan import PlannedSequence, StepPlan
from evenflow.serving.core.request import RequestId
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.kernels.attention_torch import attend
from evenflow.serving.memory.layout import ArenaLayout

mend()
CPU = torch.device("cpu")
SHAPE = ModelShape(2, 48, 80, 4, 2, 64, 10)
TABLES = torch.ones(128, 32), torch.zeros(128, 32)


class Wrapper:
    """BatchPrefillWithPagedKVCacheWrapper as its documentation describes it, for causal=True."""

    def __init__(self, workspace, kv_layout):
        assert workspace.dtype == torch.uint8
        assert kv_layout == "NHD"

    def plan(self, qo_indptr, kv_indptr, kv_indices, last_page_len, *heads, **kwargs):
        for array in (qo_indptr, kv_indptr, kv_indices, last_page_len):
            assert array.dtype == torch.int32
        *_, page_size = heads
        assert ((last_page_len >= 1) & (last_page_len <= page_size)).all()
        assert kv_indptr[-1] == len(kv_indices)
        assert kwargs.pop("causal") is True
        assert kwargs.pop("q_data_type") == kwargs.pop("kv_data_type") == torch.bfloat16
        self.sm_scale = kwargs.pop("sm_scale")
        left, cap = kwargs.pop("window_left"), kwargs.pop("logits_soft_cap")
        self.bounds = {"window": None if left < 0 else left + 1, "softcap": cap or None}
        assert not kwargs
        self.heads = heads
        self.tables = qo_indptr.tolist(), kv_indptr.tolist(), kv_indices, last_page_len.tolist()

    def run(self, q, paged_kv_cache):
        num_qo_heads, num_kv_heads, head_dim, page_size = self.heads
        rows, pages, indices, last = self.tables
        assert q.shape == (rows[-1], num_qo_heads, head_dim)
        assert q.stride(2) == 1
        k, v = paged_kv_cache
        assert k.stride() == v.stride()
        assert k.stride(3) == 1
        assert k.shape == v.shape == (k.shape[0], page_size, num_kv_heads, head_dim)
        out = torch.empty(q.shape, dtype=q.dtype)
        for i in range(len(last)):
            mine = indices[pages[i] : pages[i + 1]].long()
            context = page_size * (len(mine) - 1) + last[i]
            its_k, its_v = (cache[mine].flatten(0, 1)[:context] for cache in (k, v))
            its_rows = slice(rows[i], rows[i + 1])
            start = context - (rows[i + 1] - rows[i])
            out[its_rows] = attend(q[its_rows], its_k, its_v, start, self.sm_scale, **self.bounds)
        return out


@pytest.fixture
def flashinfer(monkeypatch):
    module = types.ModuleType("flashinfer")
    module.BatchPrefillWithPagedKVCacheWrapper = Wrapper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", module)


@pytest.mark.parametrize("page_tokens", [16, 32])
@pytest.mark.parametrize("options", [{}, {"windows": [None, 9], "softcap": 2.0}])
def test_it_gets_views_of_the_arena_and_the_right_tables(flashinfer, page_tokens, options):
    outs = []
    qkv = torch.randn(26, SHAPE.q_width + 2 * SHAPE.kv_width, generator=torch.Generator().manual_seed(0)).bfloat16()
    for name in ("flashinfer", "torch"):
        storage = Storage(ArenaLayout(SHAPE, 2, page_tokens), 12, torch.bfloat16, CPU)
        generator = torch.Generator().manual_seed(1)
        storage.elements.copy_(torch.randn(storage.elements.shape, generator=generator).bfloat16())
        backend = ATTENTION_BACKENDS.load(name)(storage, *TABLES, 0.125, **options)
        pages = list(range(12))
        random.Random(0).shuffle(pages)
        sequences = []
        for start, rows in ((0, 17), (40, 1), (15, 1), (31, 7)):
            its_pages = [pages.pop() for _ in range(-(-(start + rows) // page_tokens))]
            sequences.append(PlannedSequence(RequestId(str(start)), [0] * rows, start, its_pages, -1, None))
        backend.plan(build_batch(StepPlan(0, tuple(sequences)), page_tokens, CPU))
        outs.append([backend.run(layer, qkv.clone()) for layer in (0, 1)] + [storage.elements])
    for ours, theirs in zip(*outs):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2**-7)


def test_without_it_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    storage = Storage(ArenaLayout(SHAPE, 2), 2, torch.bfloat16, CPU)
    with pytest.raises(ConfigError, match="pip install flashinfer-python"):
        ATTENTION_BACKENDS.load("flashinfer")(storage, *TABLES, 1.0)


def test_what_it_cannot_do_is_refused(flashinfer):
    for shape, dtype in ((SHAPE, torch.float32), (ModelShape(2, 48, 80, 4, 2, 48, 10), torch.bfloat16)):
        storage = Storage(ArenaLayout(shape, dtype.itemsize), 2, dtype, CPU)
        with pytest.raises(ConfigError, match="FlashInfer for"):
            ATTENTION_BACKENDS.load("flashinfer")(storage, *TABLES, 1.0)


def test_its_name_brings_lora_along():
    names = by_name("flashinfer")
    assert names.attention in ATTENTION_BACKENDS
    assert names.lora in LORA_BACKENDS
    assert by_name("torch").lora == "torch"
