"""Divide or repeat: the two costs, by hand, and what follows for small and large batches."""

from __future__ import annotations

import pytest

from evenflow.serving.core.shape import SITES, ModelShape
from evenflow.serving.parallel.sharding import WIRES, Wire, divided_bytes, exchanged_sites, repeated_bytes

LLAMA_3_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128256)
FREE = Wire(byte=0.0, message=0.0)


def test_the_two_costs_are_the_formulas():
    """Sixteen rows of rank 16 on q, k and v of an 8B model in bf16, four ranks."""
    assert repeated_bytes("qkv", LLAMA_3_8B, 4, 2, 16) == 16 * 3 * 16 * 4096 * 2 * 3 / 4
    assert divided_bytes("qkv", 4, 16, Wire(byte=5.0, message=100.0)) == 100 + 5 * (16 * 3 * 16 * 4 * 3 / 4)
    assert divided_bytes("down", 4, 16, Wire(byte=5.0, message=100.0)) == 100 + 5 * 2 * (16 * 1 * 16 * 4 * 3 / 4)


@pytest.mark.parametrize("world_size", [2, 8])
def test_auto_takes_the_cheaper_one(world_size):
    assert exchanged_sites("auto", LLAMA_3_8B, world_size, 2, 16, FREE) == tuple(SITES)
    assert exchanged_sites("auto", LLAMA_3_8B, world_size, 2, 16, Wire(byte=0.0, message=1e12)) == ()
    assert exchanged_sites("auto", LLAMA_3_8B, world_size, 2, 16, Wire(byte=1e6, message=0.0)) == ()
    between = (
        repeated_bytes("o", LLAMA_3_8B, world_size, 2, 16) + repeated_bytes("gate_up", LLAMA_3_8B, world_size, 2, 16)
    ) / 2
    assert exchanged_sites("auto", LLAMA_3_8B, world_size, 2, 16, Wire(byte=0.0, message=between)) == ("qkv", "gate_up")


def test_larger_batches_divide_what_small_ones_repeat():
    chosen = [len(exchanged_sites("auto", LLAMA_3_8B, 4, 2, rows, WIRES["cuda"])) for rows in (1, 64, 256, 4096)]
    assert chosen == sorted(chosen)
    assert chosen[0] == 0
    assert chosen[-1] == 4


def test_a_wish_is_followed_and_one_rank_exchanges_nothing():
    assert exchanged_sites("sharded", LLAMA_3_8B, 2, 2, 1, WIRES["cpu"]) == tuple(SITES)
    assert exchanged_sites("replicated", LLAMA_3_8B, 2, 2, 4096, FREE) == ()
    assert exchanged_sites("sharded", LLAMA_3_8B, 1, 2, 1, FREE) == ()
