"""Bytes of the arena: no two rows share a byte, none leaves its page, and the packing is next-fit in reading order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.base.errors import ConfigError
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.shape import MODULES, SITES, ModelShape
from evenflow.serving.memory.layout import LINE_BYTES, ArenaLayout, K, V, place

LLAMA_3_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128256)
QWEN_0_5B = ModelShape(24, 896, 4864, 14, 2, 64, 151936)
LLAMA_2_7B = ModelShape(32, 4096, 11008, 32, 32, 128, 32000)
TOY = ModelShape(12, 1024, 2816, 16, 4, 64, 512)

shapes = st.builds(
    lambda layers, kv_heads, group, head_dim, hidden, inter: ModelShape(
        layers, hidden, inter, kv_heads * group, kv_heads, head_dim, 100
    ),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([8, 16, 24, 64]),
    st.integers(1, 200),
    st.integers(1, 300),
)
layouts = st.builds(ArenaLayout, shapes, st.sampled_from([2, 4]), st.sampled_from([16, 32, 64]))


@st.composite
def layouts_and_signatures(draw):
    layout = draw(layouts)
    rank = st.sampled_from([0, 0, 1, 3, 8, 33, 64])
    row = st.tuples(*[rank] * len(MODULES))
    return layout, AdapterSignature(tuple(draw(row) for _ in range(layout.shape.num_layers)))


def uniform(shape: ModelShape, rank: int, modules: tuple[str, ...]) -> AdapterSignature:
    return AdapterSignature((tuple(rank if m in modules else 0 for m in MODULES),) * shape.num_layers)


def reading_order(signature: AdapterSignature):
    for layer, ranks in enumerate(signature.lora_ranks):
        for modules in SITES.values():
            for part in "AB":
                for module in modules:
                    for r in range(ranks[MODULES.index(module)]):
                        yield layer, module, part, r


@given(layouts)
def test_a_page_is_whole_lines_and_takes_four_of_the_widest_rows(layout):
    assert layout.page_bytes % LINE_BYTES == 0
    assert layout.page_bytes == layout.kv_rows_per_page * layout.shape.kv_width * layout.itemsize
    widest = max(w for m in MODULES for w in layout.shape.module_widths(m))
    assert layout.page_bytes >= 4 * layout.row_bytes(widest)
    assert layout.page_tokens % 16 == 0


@given(layouts, st.data())
def test_kv_rows_tile_the_pages(layout, data):
    """kv_row is a bijection onto 0 .. rows, and agrees with the byte offset of the layer's half page."""
    pages, layers, slots = np.ogrid[:2, : layout.shape.num_layers, : layout.page_tokens]
    rows = np.stack([layout.kv_row(pages, layers, half, slots) for half in (K, V)])
    assert sorted(rows.ravel()) == list(range(2 * layout.kv_rows_per_page))
    layer = data.draw(st.integers(0, layout.shape.num_layers - 1))
    slot = data.draw(st.integers(0, layout.page_tokens - 1))
    width_bytes = layout.shape.kv_width * layout.itemsize
    for half in (K, V):
        expected = layout.page_bytes + layout.kv_offset(layer, half) + slot * width_bytes
        assert layout.kv_row(1, layer, half, slot) * width_bytes == expected


@settings(max_examples=60)
@given(layouts_and_signatures())
def test_rows_are_aligned_disjoint_inside_pages_and_next_fit(case):
    layout, signature = case
    placement = place(layout, signature)
    page, end = 0, 0
    count = 0
    offsets = {
        (layer, module, part): placement.row_offsets(layer, module, part)
        for layer in range(layout.shape.num_layers)
        for module in MODULES
        for part in ("A", "B")
    }
    for layer, module, part, r in reading_order(signature):
        size = layout.row_bytes(placement.row_width(module, part))
        if end + size > layout.page_bytes:
            page, end = page + 1, 0
        assert offsets[layer, module, part][r] == page * layout.page_bytes + end
        assert end % LINE_BYTES == 0
        end += size
        count += 1
    assert placement.num_rows == count
    assert placement.num_pages == (page + 1 if count else 0)


@settings(max_examples=60)
@given(layouts_and_signatures(), st.randoms())
def test_lines_follow_the_pages_given(case, random):
    layout, signature = case
    placement = place(layout, signature)
    pages = random.sample(range(3 * placement.num_pages + 1), placement.num_pages)
    lines = placement.lines(pages)
    identity = placement.lines(range(placement.num_pages))
    assert len(lines) == placement.num_rows
    for line, home in zip(lines, identity):
        ordinal, inside = divmod(int(home), layout.lines_per_page)
        assert line == pages[ordinal] * layout.lines_per_page + inside
    with pytest.raises(ValueError, match="pages given"):
        placement.lines([*pages, 0])


@settings(max_examples=40)
@given(layouts_and_signatures())
def test_table_points_at_the_modules_rows(case):
    layout, signature = case
    placement = place(layout, signature)
    where = list(reading_order(signature))
    for layer in range(layout.shape.num_layers):
        for index, module in enumerate(MODULES):
            rank = placement.lora_ranks[layer, index]
            for part, first in (("A", placement.first_a), ("B", placement.first_b)):
                start = first[layer, index]
                assert where[start : start + rank] == [(layer, module, part, r) for r in range(rank)]


def test_the_same_signature_is_placed_once():
    layout = ArenaLayout(TOY, 2)
    assert place(layout, uniform(TOY, 8, MODULES)) is place(ArenaLayout(TOY, 2), uniform(TOY, 8, MODULES))


@pytest.mark.parametrize(
    ("shape", "page_bytes", "pages"),
    [
        (LLAMA_2_7B, 8 << 20, {1: 1, 8: 5, 16: 10, 64: 39}),
        (LLAMA_3_8B, 2 << 20, {1: 3, 8: 21, 16: 41, 64: 161}),
        (QWEN_0_5B, 192 << 10, {1: 6, 8: 46, 16: 91, 64: 362}),
        (TOY, 192 << 10, {1: 3, 8: 18, 16: 36, 64: 144}),
    ],
)
def test_sizes_of_real_models(shape, page_bytes, pages):
    """The table of docs/layouts.md, column "all seven"."""
    layout = ArenaLayout(shape, 2)
    assert layout.page_tokens == 16
    assert layout.page_bytes == page_bytes
    for rank, expected in pages.items():
        placement = place(layout, uniform(shape, rank, MODULES))
        assert placement.num_pages == expected
        assert placement.size_bytes <= expected * page_bytes


def test_an_adapter_without_rows_needs_no_page():
    placement = place(ArenaLayout(TOY, 2), uniform(TOY, 0, ()))
    assert placement.num_pages == 0
    assert placement.lines([]).size == 0


def test_impossible_arguments_are_refused():
    with pytest.raises(ConfigError, match="page_tokens"):
        ArenaLayout(TOY, 2, 24)
    with pytest.raises(ValueError, match="lora_ranks has shape"):
        place(ArenaLayout(TOY, 2), AdapterSignature(((1,) * 7,)))
