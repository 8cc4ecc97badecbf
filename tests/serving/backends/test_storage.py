"""The arena's tensor: aligned, zeroed, and pages move without touching their neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.base.errors import ConfigError
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.memory.layout import LINE_BYTES, ArenaLayout

SHAPE = ModelShape(2, 40, 60, 4, 2, 16, 10)
CPU = torch.device("cpu")


def make(num_pages: int = 8, dtype: torch.dtype = torch.bfloat16) -> Storage:
    return Storage(ArenaLayout(SHAPE, dtype.itemsize), num_pages, dtype, CPU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_views_share_the_zeroed_aligned_bytes(dtype):
    storage = make(dtype=dtype)
    assert storage.address % LINE_BYTES == 0
    assert not storage.bytes.any()
    layout = storage.layout
    row = layout.kv_row(5, 1, 1, 7)
    storage.kv_rows[row] = 1
    start = 5 * layout.page_bytes + layout.kv_offset(1, 1) + 7 * SHAPE.kv_width * layout.itemsize
    touched = storage.bytes.nonzero().flatten()
    assert start <= touched.min()
    assert touched.max() < start + SHAPE.kv_width * layout.itemsize


@settings(max_examples=50)
@given(st.permutations(range(8)), st.integers(0, 8))
def test_pages_are_written_where_they_belong(order, count):
    storage = make()
    pages = list(order)[:count]
    generator = torch.Generator().manual_seed(0)
    before = torch.randint(0, 256, storage.bytes.shape, dtype=torch.uint8, generator=generator)
    storage.bytes.copy_(before)
    image = torch.randint(0, 256, (count, storage.layout.page_bytes), dtype=torch.uint8, generator=generator)
    storage.write_pages(pages, image)
    expected = before.view(8, -1).clone()
    for page, content in zip(pages, image):
        expected[page] = content
    assert torch.equal(storage.bytes.view(8, -1), expected)
    assert torch.equal(storage.read_pages(pages), image)


def test_factor_rows_are_read_from_their_lines():
    storage = make()
    storage.elements.copy_((torch.arange(storage.elements.numel()) % 251).bfloat16())
    last = storage.bytes.numel() // LINE_BYTES - 2
    lines = torch.tensor([3, 0, last])
    rows = storage.factor_rows(lines, 40)
    for row, line in zip(rows, lines):
        assert torch.equal(row, storage.elements[32 * line : 32 * line + 40])


def test_wrong_sizes_are_refused():
    storage = make()
    with pytest.raises(ValueError, match="image of shape"):
        storage.write_pages([1, 2], torch.zeros((1, storage.layout.page_bytes), dtype=torch.uint8))
    with pytest.raises(ConfigError, match="layout"):
        Storage(storage.layout, 4, torch.float32, CPU)
