"""Adapters loaded beside the steps of others: the same tokens, and nothing left to load when their turn comes."""

from __future__ import annotations

import pytest
from engine_harness import EngineHarness

PROMPT = [5, 9, 30, 7]


@pytest.fixture(scope="module")
def expected(tiny_model, tiny_adapters):
    plain = EngineHarness(tiny_model, tiny_adapters, adapter_prefetch_bytes=0)
    return {name: plain.generate((PROMPT, name), max_tokens=10)[0] for name in (None, *tiny_adapters)}


def loads_of(harness):
    """Every load that the executor was given, step by step."""
    seen = []
    executor = harness.engine._executor
    real = executor.run

    def run(plan):
        seen.append([(load.digest, load.first, load.stop, load.is_prefetch) for load in plan.loads])
        return real(plan)

    executor.run = run
    return seen


@pytest.mark.parametrize(
    "settings", [{}, {"kernels": "torch"}, {"adapter_prefetch_bytes": 1}, {"adapter_eviction": "cost-aware"}]
)
def test_tokens_do_not_depend_on_when_adapters_are_loaded(tiny_model, tiny_adapters, tmp_path, expected, settings):
    harness = EngineHarness(tiny_model, tiny_adapters, max_num_seqs=1, adapter_cache=tmp_path, **settings)
    names = [None, *tiny_adapters]
    assert harness.generate(*((PROMPT, name) for name in names), max_tokens=10) == [expected[name] for name in names]
    assert harness.scheduler.snapshot().num_adapter_prefetches == len(tiny_adapters)
    harness.assert_nothing_leaked()


def test_nothing_is_left_to_load_when_the_turn_comes(tiny_model, tiny_adapters, tmp_path, expected):
    harness = EngineHarness(tiny_model, tiny_adapters, max_num_seqs=1, adapter_cache=tmp_path)
    loads = loads_of(harness)
    harness.generate((PROMPT, None), (PROMPT, "r8"), (PROMPT, "r64"), max_tokens=10)
    assert {digest for step in loads for digest, *_ in step} == {harness.engine.catalog.resolve(name) for name in ("r8", "r64")}
    assert all(is_prefetch for step in loads for *_, is_prefetch in step)


def test_in_parts_a_step_copies_no_more_than_its_budget(tiny_model, tiny_adapters, tmp_path, expected):
    harness = EngineHarness(tiny_model, tiny_adapters, max_num_seqs=1, adapter_cache=tmp_path, adapter_prefetch_bytes=1)
    num_pages = harness.engine.adapters({"r8"})[0].num_pages
    assert 1 < num_pages < 9
    loads = loads_of(harness)
    assert harness.generate((PROMPT, None), (PROMPT, "r8"), max_tokens=10) == [expected[None], expected["r8"]]
    digest = harness.engine.catalog.resolve("r8")
    assert loads[:num_pages] == [[(digest, i, i + 1, True)] for i in range(num_pages)]
    assert not any(loads[num_pages:])


def test_one_that_is_unloaded_while_it_is_prefetched_is_gone_when_nobody_waits_for_it(tiny_model, tiny_adapters, tmp_path):
    harness = EngineHarness(tiny_model, tiny_adapters, max_num_seqs=1, adapter_cache=tmp_path, adapter_prefetch_bytes=1)
    harness.submit(PROMPT, max_tokens=10)
    waiting = harness.submit(PROMPT, "r64", max_tokens=10)
    harness.step()
    harness.step()
    harness.engine.unload_adapter("r64", purge=True)
    assert [info.state for info in harness.engine.adapters() if info.name == "r64"] == ["draining"], "its request still waits"
    harness.engine.abort([waiting])
    assert not [info for info in harness.engine.adapters() if info.name == "r64"]
    assert harness.scheduler.snapshot().num_adapter_pages == 0
    harness.run()
    harness.assert_nothing_leaked()


def test_rows_damaged_under_a_prefetch_fail_the_request_that_waits_for_them_only(tiny_model, tiny_adapters, tmp_path, expected):
    few = {name: tiny_adapters[name] for name in ("r8", "r64")}
    harness = EngineHarness(tiny_model, few, max_num_seqs=1, adapter_cache=tmp_path)
    [path] = [path for path in tmp_path.rglob("*.rows") if path.stem == harness.engine.catalog.resolve("r64")]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5000)
    running = harness.submit(PROMPT, max_tokens=10)
    bad, good = harness.submit(PROMPT, "r64", max_tokens=10), harness.submit(PROMPT, "r8", max_tokens=10)
    harness.run()
    assert harness.answers[running].token_ids == expected[None]
    assert harness.answers[good].token_ids == expected["r8"]
    [(_, folder, _)] = harness.engine.repairs.take()
    assert folder == few["r64"]
    assert harness.answers[bad].last.error_type == "AdapterDamaged"
    assert harness.scheduler.snapshot().num_failed_adapter_loads == 2, "the prefetch once, and the request itself"
    harness.assert_nothing_leaked()


def test_a_request_that_waited_through_a_repair_gets_its_answer(tiny_model, tiny_adapters, tmp_path, expected):
    harness = EngineHarness(tiny_model, {"r64": tiny_adapters["r64"]}, max_num_seqs=1, adapter_cache=tmp_path)
    for path in tmp_path.rglob("*.rows"):
        path.unlink()
    harness.submit(PROMPT, max_tokens=10)
    waiting = harness.submit(PROMPT, "r64", max_tokens=10)
    harness.step()
    [(digest, folder, _)] = harness.engine.repairs.take()
    harness.step()
    assert not harness.engine.repairs.take(), "told once"
    assert harness.engine.catalog.prepare(folder).record.digest == digest
    harness.engine.repairs.end(digest, None)
    harness.run()
    assert harness.answers[waiting].token_ids == expected["r64"]
