"""Parts of all ranks make the whole, exactly once, except what is meant to be held by all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenflow.base.errors import ConfigError
from evenflow.serving.core.shape import MODULES, SITES, ModelShape
from evenflow.serving.core.shard import COLUMN_SITES, ROW_SITES, Shard, check_divisible

ALL, NONE = tuple(SITES), ()


def shape(heads: int = 8, kv_heads: int = 4, inter: int = 24, hidden: int = 50, vocab: int = 101) -> ModelShape:
    return ModelShape(2, hidden, inter, heads, kv_heads, 16, vocab)


def shards(world_size: int, exchanged: tuple[str, ...], whole: ModelShape | None = None) -> list[Shard]:
    return [Shard(whole or shape(), rank, world_size, exchanged) for rank in range(world_size)]


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 40), st.sampled_from(["q_proj", "gate_proj", "up_proj"]))
def test_column_parallel_modules_are_cut_by_output_and_exchanged_ones_by_rank_too(world_size, lora_rank, module):
    whole = shape()
    held = shards(world_size, COLUMN_SITES)
    assert [c for s in held for c in s.outputs(module)] == list(range(whole.module_widths(module)[1]))
    assert [r for s in held for r in s.a_rows(module, lora_rank)] == list(range(lora_rank))
    assert max(len(s.a_rows(module, lora_rank)) for s in held) == -(-lora_rank // world_size)
    for s, alone in zip(held, shards(world_size, NONE)):
        assert s.inputs(module) == range(whole.hidden_size)
        assert s.b_columns(module) == s.outputs(module)
        assert alone.a_rows(module, lora_rank) == range(lora_rank)


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from(["o_proj", "down_proj"]))
def test_row_parallel_modules_are_cut_by_input_and_exchanged_ones_by_output_of_b_too(world_size, module):
    whole = shape()
    inputs, outputs = whole.module_widths(module)
    held = shards(world_size, ROW_SITES)
    assert [c for s in held for c in s.inputs(module)] == list(range(inputs))
    assert [c for s in held for c in s.b_columns(module)] == list(range(outputs))
    for s, alone in zip(held, shards(world_size, NONE)):
        assert s.outputs(module) == range(outputs) == alone.b_columns(module)
        assert s.a_rows(module, 7) == range(7)


@pytest.mark.parametrize(
    ("world_size", "kv_heads", "held"), [(2, 4, [0, 2]), (4, 4, [0, 1, 2, 3]), (8, 2, [0, 0, 0, 0, 1, 1, 1, 1])]
)
def test_kv_heads_are_cut_or_repeated_beside_their_query_heads(world_size, kv_heads, held):
    whole = shape(kv_heads=kv_heads)
    group = whole.num_heads // whole.num_kv_heads
    for rank, s in enumerate(shards(world_size, ALL, whole)):
        first = s.outputs("k_proj").start // whole.head_dim
        assert first == held[rank]
        assert s.outputs("v_proj") == s.outputs("k_proj")
        assert len(s.outputs("k_proj")) == s.shape.kv_width
        # Inside a rank, query head i reads KV head i // (heads / kv_heads): the same one as in the whole model.
        first_query = s.outputs("q_proj").start // whole.head_dim
        for i in range(s.shape.num_heads):
            assert first + i // (s.shape.num_heads // s.shape.num_kv_heads) == (first_query + i) // group


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_widths_agree_with_the_ranks_own_shape(world_size):
    for s in shards(world_size, NONE):
        for module in MODULES:
            assert (len(s.inputs(module)), len(s.outputs(module))) == s.shape.module_widths(module)
    assert [t for s in shards(world_size, NONE) for t in s.vocabulary()] == list(range(101))


@pytest.mark.parametrize(
    ("whole", "world_size", "allowed"),
    [
        (shape(), 3, "1, 2, 4, 8"),
        (shape(heads=12, kv_heads=3), 2, "1, 3, 6, 12"),
        (shape(inter=22), 4, "1, 2"),
        (shape(), 16, "1, 2, 4, 8"),
        (shape(), 0, "1, 2, 4, 8"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_what_can(whole, world_size, allowed):
    with pytest.raises(ConfigError, match=rf"tensor_parallel is {world_size}; .*allowed: {allowed}$"):
        check_divisible(whole, world_size)


def test_an_impossible_rank_or_site_is_refused():
    with pytest.raises(ConfigError, match="allowed: 0 to 1"):
        Shard(shape(), 2, 2)
    with pytest.raises(ConfigError, match="allowed: qkv, o, gate_up, down"):
        Shard(shape(), 0, 2, ("q_proj",))
