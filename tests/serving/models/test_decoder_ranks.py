"""A decoder over tensor-parallel ranks (threads here) says what the whole one says, and sends what was planned."""

from __future__ import annotations

import pytest
import torch
from model_harness import Harness
from thread_ranks import on_ranks

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.serving.adapters.page_image import page_image
from evenflow.serving.adapters.peft_reader import read_adapter
from evenflow.serving.core.shape import MODULES, SITES
from evenflow.serving.core.shard import Shard
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model
from evenflow.serving.parallel.rank_group import RankGroup
from tolerances import FP32_LOGITS

PROMPTS = [list(range(40, 59)), [7], [9, 9, 200, 31, 5, 5, 5]]
SHAPES = {
    "gqa": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "repeated KV heads, tied": {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "biases, odd vocabulary": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "mlp_bias": True,
        "vocab_size": 259,
    },
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def model(request, tmp_path_factory):
    """(folder, config, adapters of ranks that four ranks cannot divide, some modules missing)."""
    root = tmp_path_factory.mktemp("model")
    config = make_model(root / "base", **request.param)
    settings = [
        {"lora_rank": 3, "rank_pattern": {"q_proj": 1, "down_proj": 6, "v_proj": 9}},
        {"lora_rank": 8, "target_modules": ("k_proj", "o_proj", "up_proj"), "layers": [1]},
    ]
    folders = [make_adapter(root / str(i), config, seed=i, **fields) for i, fields in enumerate(settings)]
    return root / "base", config, [read_adapter(folder, config.shape) for folder in folders]


def run(harness, adapters, chunk=10_000):
    for slot, adapter in enumerate(adapters):
        harness.load(slot, adapter.signature, page_image(adapter, harness.layout)[1])
    return harness.generate(PROMPTS, 6, slots=[0, -1, 1], chunk=chunk)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("exchanged", [(), tuple(SITES), ("qkv", "down")], ids=["replicated", "sharded", "mixed"])
def test_ranks_say_what_one_says(model, world_size, exchanged):
    folder, config, adapters = model
    expected_tokens, expected_logits = run(Harness(folder, config), adapters)

    def one_rank(rank, collective):
        shard = Shard(config.shape, rank, world_size, exchanged)
        group = RankGroup(collective)
        result = run(Harness(folder, config, shard=shard, group=group), adapters, chunk=11)
        group.ledger.check_integrity()
        return result

    results = on_ranks(world_size, one_rank)
    for tokens, logits in results:
        assert tokens == expected_tokens
        for found, expected, of_rank_0 in zip(logits, expected_logits, results[0][1]):
            torch.testing.assert_close(found, expected, rtol=0, atol=FP32_LOGITS)
            assert torch.equal(found, of_rank_0), "ranks differ"


def sent(model_folder, config, adapters, world_size, exchanged, slots, compress="none"):
    """Ledger of rank 0 after one step of five rows per sequence, slots given."""

    def one_rank(rank, collective):
        group = RankGroup(collective, compress, config.shape.hidden_size)
        harness = Harness(model_folder, config, shard=Shard(config.shape, rank, world_size, exchanged), group=group)
        for slot, adapter in enumerate(adapters):
            harness.load(slot, adapter.signature, page_image(adapter, harness.layout)[1])
        logits = harness.step([(i, [1, 2, 3, 4, 5], 0, slot) for i, slot in enumerate(slots)])
        group.ledger.check_integrity()
        return group.ledger.by_site, logits

    return on_ranks(world_size, one_rank)[0]


@pytest.mark.parametrize("world_size", [2, 4])
def test_sent_elements_are_the_papers(tmp_path, world_size):
    """5 (N-1) B r / N per attention block and 4 (N-1) B r / N per MLP (section 6), every adapter on all modules."""
    config = make_model(tmp_path / "base", num_attention_heads=8, num_key_value_heads=4)
    adapters = [read_adapter(make_adapter(tmp_path / "a", config, lora_rank=8), config.shape)]
    by_site, _ = sent(tmp_path / "base", config, adapters, world_size, tuple(SITES), [0, 0, -1])
    layers, rows, rank = config.shape.num_layers, 10, 8
    attention = by_site["lora.qkv"].counted + by_site["lora.o"].counted
    mlp = by_site["lora.gate_up"].counted + by_site["lora.down"].counted
    assert attention == 4 * layers * 5 * (world_size - 1) * rows * rank / world_size
    assert mlp == 4 * layers * 4 * (world_size - 1) * rows * rank / world_size
    assert {by_site[f"lora.{site}"].exchanges for site in SITES} == {layers}, "one message per site and layer"


def test_mixed_ranks_send_what_each_row_needs(model):
    """B r becomes the sum over rows of ceil(r / N) N, module by module and layer by layer."""
    folder, config, adapters = model
    world_size, slots = 4, [0, -1, 1]
    by_site, _ = sent(folder, config, adapters, world_size, tuple(SITES), slots)
    for site, modules in SITES.items():
        padded = sum(
            5 * -(-adapters[slot].signature.lora_ranks[layer][MODULES.index(module)] // world_size) * world_size
            for slot in slots
            if slot >= 0
            for layer in range(config.shape.num_layers)
            for module in modules
        )
        times = 1 if site in ("qkv", "gate_up") else 2
        assert by_site[f"lora.{site}"].counted == 4 * times * (world_size - 1) * padded / world_size


def test_replicated_adapters_send_nothing_and_base_rows_neither(model):
    folder, config, adapters = model
    by_site, _ = sent(folder, config, adapters, 2, (), [0, 1])
    assert not [site for site in by_site if site.startswith("lora.")]
    by_site, _ = sent(folder, config, adapters, 2, tuple(SITES), [-1, -1])
    assert set(by_site) == {"embedding", "o", "down", "logits"}


@pytest.mark.parametrize(
    ("compress", "worst", "share"), [("int8-g32", 0.3, 0.3), ("bf16", 0.1, 0.51), ("int4-g32/one-shot", 3.0, 0.2)]
)
def test_compressed_sums_change_little_and_send_less(tmp_path, compress, worst, share):
    """Against fp32: int8 with a scale per 32 values sends 9 of 32 bits, bf16 half; one-shot sends as much as it gathers."""
    config = make_model(tmp_path / "base")
    dense, exact = sent(tmp_path / "base", config, [], 2, (), [-1, -1])
    small, found = sent(tmp_path / "base", config, [], 2, (), [-1, -1], compress)
    assert 0 < (found - exact).abs().max() < worst
    for site in ("o", "down"):
        assert 0 < small[site].counted < share * dense[site].counted
    assert small["embedding"].counted == dense["embedding"].counted


def test_a_row_that_is_not_finite_on_one_rank_fails_alone(tmp_path):
    """Rank 1's shard of an adapter is broken: its row comes out as NaN everywhere, the other one as if nothing had been."""
    config = make_model(tmp_path / "base")
    adapter = read_adapter(make_adapter(tmp_path / "a", config, lora_rank=4), config.shape)

    def one_rank(rank, collective, slots=(0, -1), breaks=True):
        group = RankGroup(collective, "int8-g32", config.shape.hidden_size)
        harness = Harness(tmp_path / "base", config, shard=Shard(config.shape, rank, 2), group=group)
        image = page_image(adapter, harness.layout)[1].copy()
        if rank == 1 and breaks:
            image.view("float32")[:] = float("nan")
        harness.load(0, adapter.signature, image)
        return harness.step([(i, [1, 2, 3], 0, slot) for i, slot in enumerate(slots)])

    whole = on_ranks(2, lambda rank, collective: one_rank(rank, collective, breaks=False))
    for broken, sound in zip(on_ranks(2, one_rank), whole):
        assert broken[0].isnan().any()
        assert torch.equal(broken[1], sound[1])


@pytest.mark.parametrize("where", ["one rank", "the sum alone"])
@pytest.mark.parametrize(
    ("compress", "carried", "too_large"),
    [
        ("fp16", 3e4, 6e4),
        *(
            (spec, 1e34, 3e38)
            for spec in ("bf16", "int8-g32", "int8-g32/one-shot", "int4-g32", "fp8-g128", "mxfp8", "hadamard-int4")
        ),
    ],
)
def test_a_value_beyond_the_wire_fails_its_row_alone(compress, carried, too_large, where, caplog):
    """In the part of one rank, or only when the parts are added up."""

    def one_rank(rank, collective, value):
        part_TO = torch.randn(3, 64, generator=torch.Generator().manual_seed(rank))
        part_TO[1, 7] = value if where == "the sum alone" or rank == 0 else 0.5
        return RankGroup(collective, compress, 64).sum_outputs(part_TO, "o")

    for total_TO in on_ranks(2, lambda rank, collective: one_rank(rank, collective, carried)):
        assert total_TO.isfinite().all()
    assert not caplog.records
    beyond = too_large if where == "the sum alone" else 2 * min(too_large, 1.6e38)
    totals = on_ranks(2, lambda rank, collective: one_rank(rank, collective, beyond))
    assert not totals[0][1].isfinite().all()
    assert all(total_TO[[0, 2]].isfinite().all() for total_TO in totals)
    if where == "one rank":
        assert f"compress is {compress.partition('/')[0]}, which carries values up to" in caplog.text


@pytest.mark.parametrize("spec", ["ae:16", "powersgd:4", "ef(topk:0.1)", "subspace-learned:8", "aqsgd:4", "caat:0.5"])
def test_a_compressor_that_learns_or_remembers_is_refused(spec):
    with pytest.raises(ConfigError, match="allowed: compressors that need no training, remember"):
        RankGroup(_Alone(), spec, 64)


def test_an_unknown_compressor_is_refused_with_the_known_ones():
    with pytest.raises(RegistryError, match=r"known: .*int8-g32"):
        RankGroup(_Alone(), "int9", 64)


class _Alone:
    rank, world_size = 0, 1
