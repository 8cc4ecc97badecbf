"""A request gets its own adapter and nothing of anybody else's, whatever happens around it."""

from __future__ import annotations

import shutil
from itertools import combinations

import pytest
from engine_harness import EngineHarness

from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.random.random_adapter import make_adapter

PROMPTS = [list(range(5, 5 + n)) for n in (3, 40, 17, 1)]


@pytest.fixture(scope="module")
def engine(tiny_model, tiny_adapters):
    return EngineHarness(tiny_model, tiny_adapters)


def test_every_pair_of_adapters_mixed_equals_each_alone(engine, tiny_adapters):
    names = [None, *tiny_adapters]
    alone = {(name, i): engine.generate((prompt, name))[0] for name in names for i, prompt in enumerate(PROMPTS)}
    for i in range(len(PROMPTS)):
        assert len({tuple(alone[name, i]) for name in names}) == len(names), (
            "the adapters must differ for this to mean anything"
        )
    for first, second in combinations(names, 2):
        pairs = [(name, i) for i in range(len(PROMPTS)) for name in (first, second)]
        mixed = engine.generate(*((PROMPTS[i], name) for name, i in pairs))
        for pair, tokens in zip(pairs, mixed, strict=True):
            assert tokens == alone[pair], f"{pair} beside {first} and {second}"
    engine.assert_nothing_leaked()


@pytest.mark.parametrize("settings", [{"max_batch_tokens": 16}, {"max_num_seqs": 3}, {"kernels": "torch"}, {"page_tokens": 32}])
def test_tokens_do_not_depend_on_chunks_batches_kernels_or_pages(engine, tiny_model, tiny_adapters, settings):
    requests = [(prompt, name) for prompt in PROMPTS for name in (None, "r1", "r64", "pattern")]
    expected = engine.generate(*requests)
    other = EngineHarness(tiny_model, tiny_adapters, **settings)
    assert other.generate(*requests) == expected
    other.assert_nothing_leaked()


def test_preempted_requests_give_the_same_tokens(engine, tiny_model, tiny_adapters):
    requests = [([7 + i, *range(3, 20 + i)], name) for i, name in enumerate([None, "r1", "r3", "one-layer"] * 2)]
    expected = engine.generate(*requests, max_tokens=40)
    page_bytes = engine.engine.ready().page_bytes
    few = {name: tiny_adapters[name] for name in ("r1", "r3", "one-layer")}
    small = EngineHarness(tiny_model, few, memory_bytes=24 * page_bytes, max_model_len=128)
    small.generate(*[([1, 2], None)] * 60, max_tokens=1)  # teaches the admission to expect short answers
    assert small.generate(*requests, max_tokens=40) == expected
    assert small.scheduler.snapshot().num_preemptions > 0, "the arena was too large to show anything"
    assert small.scheduler.snapshot().recomputed_tokens > 0
    small.assert_nothing_leaked()


def test_unloading_while_running_drains_then_frees(engine, tiny_model, tiny_adapters):
    expected = engine.generate((PROMPTS[1], "r8"), max_tokens=20)
    other = EngineHarness(tiny_model, {"r8": tiny_adapters["r8"]})
    running = other.submit(PROMPTS[1], "r8", max_tokens=20)
    for _ in range(4):
        other.step()
    other.engine.unload_adapter("r8")
    assert [info.state for info in other.engine.adapters()] == ["draining"]
    late = other.submit(PROMPTS[0], "r8")
    assert other.answers[late].last.error_type == "AdapterNotFound"
    other.run()
    assert [other.answers[running].token_ids] == expected
    assert other.engine.adapters() == []
    assert other.scheduler.snapshot().num_free_pages == other.scheduler.snapshot().num_pages


def test_reloading_a_name_leaves_running_requests_their_weights(engine, tiny_model, tiny_adapters):
    old, new = engine.generate((PROMPTS[2], "r1"), (PROMPTS[2], "r3"), max_tokens=20)
    other = EngineHarness(tiny_model, {"name": tiny_adapters["r1"]})
    before = other.submit(PROMPTS[2], "name", max_tokens=20)
    for _ in range(4):
        other.step()
    other.load("name", tiny_adapters["r3"], replace=True)
    after = other.submit(PROMPTS[2], "name", max_tokens=20)
    other.run()
    assert other.answers[before].token_ids == old
    assert other.answers[after].token_ids == new
    assert len(other.engine.adapters()) == 1


def test_a_waiting_request_keeps_the_weights_it_was_sent_to(tiny_model, tiny_adapters, engine):
    expected = engine.generate((PROMPTS[2], "r1"))[0]
    other = EngineHarness(tiny_model, {"name": tiny_adapters["r1"]}, max_num_seqs=1)
    first, waiting = other.submit(PROMPTS[0], max_tokens=6), other.submit(PROMPTS[2], "name")
    other.step()
    other.load("name", tiny_adapters["r3"], replace=True)
    other.run()
    assert other.answers[waiting].token_ids == expected
    assert len(other.answers[first].token_ids) == 6


def test_a_thousand_adapters_cycle_through_an_arena_that_holds_ten(tiny_model, tmp_path):
    config = load_config(tiny_model)
    large = EngineHarness(tiny_model, check_every=50, memory_bytes=64 << 20)
    page_bytes = large.engine.ready().page_bytes
    folder = make_adapter(tmp_path / "adapter", config, lora_rank=2, target_modules=("q_proj", "v_proj"), layers=[0])
    num_pages = large.engine.catalog.prepare(folder).record.num_pages
    small = EngineHarness(tiny_model, check_every=50, memory_bytes=(10 * num_pages + 2) * page_bytes, max_model_len=32)
    for i in range(1000):
        make_adapter(folder, config, lora_rank=2, target_modules=("q_proj", "v_proj"), layers=[0], strength=3.0, seed=i)
        adapter = small.engine.catalog.prepare(folder)
        for harness in (small, large):
            harness.engine.register_adapter(f"a{i}", adapter)
    shutil.rmtree(folder)
    order = [(37 * i) % 1000 for i in range(1000)]
    requests = [([3 + i % 300, 9, 4], f"a{i}") for i in order]
    expected = large.generate(*requests, max_tokens=2)
    assert small.generate(*requests, max_tokens=2) == expected
    assert len({tuple(tokens) for tokens in expected}) > 500, "the adapters must differ for this to mean anything"
    snapshot = small.scheduler.snapshot()
    assert snapshot.num_adapter_loads >= 1000
    assert snapshot.num_adapter_evictions >= 985
    assert snapshot.num_resident_adapters <= 12
    small.assert_nothing_leaked()


def test_a_broken_adapter_hurts_nobody_else(engine, tiny_model, tiny_adapters, tmp_path):
    """Finite weights whose product overflows: its own requests end with an error, its neighbours' do not."""
    expected = engine.generate((PROMPTS[0], None), (PROMPTS[1], "r8"))
    broken = make_adapter(tmp_path / "broken", load_config(tiny_model), lora_rank=2, strength=3e37)
    other = EngineHarness(tiny_model, {"r8": tiny_adapters["r8"], "broken": broken})
    good = [other.submit(PROMPTS[0]), other.submit(PROMPTS[1], "r8")]
    bad = other.submit(PROMPTS[0], "broken")
    other.run()
    assert [other.answers[i].token_ids for i in good] == expected
    assert other.answers[bad].last.error_type == "AdapterError", "400: the server is well"
    assert "not finite" in other.answers[bad].last.error
    other.assert_nothing_leaked()
