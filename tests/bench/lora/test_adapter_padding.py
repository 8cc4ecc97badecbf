"""Padding to slots: every row of the adapter where the padded layout has it, zeros in all others."""

import numpy as np
import pytest

from evenflow.base.errors import ConfigError
from evenflow.bench.lora.baselines.padding import PaddedAdapters
from evenflow.serving.adapters.row_file import MemoryRows
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.shape import MODULES, ModelShape
from evenflow.serving.memory.layout import ArenaLayout, place

LAYOUT = ArenaLayout(ModelShape(3, 52, 75, 3, 1, 24, 10), 4)
RANKS = {"a": (1, 0, 3, 2, 0, 5, 9), "b": (9, 0, 1, 9, 0, 9, 2), "c": (0, 4, 0, 0, 0, 0, 0)}


def adapter(name: str) -> tuple[AdapterRecord, np.ndarray]:
    signature = AdapterSignature((RANKS[name], (0,) * 7, RANKS[name]))
    placement = place(LAYOUT, signature)
    image = np.random.default_rng(ord(name)).integers(1, 256, (placement.num_pages, LAYOUT.page_bytes)).astype(np.uint8)
    return AdapterRecord(name, signature, placement.num_pages, placement.size_bytes), image


ADAPTERS = {name: adapter(name) for name in RANKS}


def padded(max_lora_rank: int) -> PaddedAdapters:
    rows = {name: (record.signature, MemoryRows(image)) for name, (record, image) in ADAPTERS.items()}
    return PaddedAdapters(LAYOUT, max_lora_rank, lambda name: ADAPTERS[name][0], rows.__getitem__)


def test_own_rows_are_there_and_the_others_are_zero():
    slots = padded(9)
    for name in ("a", "b", "a", "c"):  # images are reused
        record, image = ADAPTERS[name]
        signature, rows = slots.host_rows(name)
        held = np.empty((rows.size_bytes // LAYOUT.page_bytes, LAYOUT.page_bytes), np.uint8)
        rows.read(0, [held])
        assert len(held) == slots.record(name).num_pages
        source, target = place(LAYOUT, record.signature), place(LAYOUT, signature)
        left = held.reshape(-1).copy()
        for layer, ranks in enumerate(record.signature.lora_ranks):
            for module, rank in zip(MODULES, ranks):
                assert target.lora_ranks[layer, MODULES.index(module)] == (9 if rank else 0)
                for part in ("A", "B"):
                    size = LAYOUT.row_bytes(source.row_width(module, part))
                    pairs = zip(source.row_offsets(layer, module, part), target.row_offsets(layer, module, part))
                    for start, to in pairs:
                        np.testing.assert_array_equal(left[to : to + size], image.reshape(-1)[start : start + size])
                        left[to : to + size] = 0
        assert not left.any()


def test_a_rank_above_the_slots_is_refused():
    with pytest.raises(ConfigError, match="allowed: 8"):
        padded(8).record("a")
