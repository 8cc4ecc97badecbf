"""Models whose every layer has a window: what lies outside is given back, and nothing that is said changes."""

from __future__ import annotations

import pytest
from engine_harness import EngineHarness

from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model

MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
WINDOW = 40
REQUESTS = [([7 + i, *range(3, 20 + 25 * i)], name) for i, name in enumerate([None, "r4", None, "r4"])]
"""Shorter than the window, and longer."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    config = make_model(folder / "model", sliding_window=WINDOW, **MISTRAL)
    return folder / "model", {"r4": make_adapter(folder / "r4", config, lora_rank=4)}


@pytest.fixture(scope="module")
def expected(folders):
    """Alone, at once, through torch, nothing shared."""
    alone = EngineHarness(*folders, kernels="torch", enable_prefix_caching=False, check_every=9)
    return [alone.generate(request, max_tokens=90)[0] for request in REQUESTS]


@pytest.mark.parametrize("settings", [{}, {"max_batch_tokens": 17}, {"enable_prefix_caching": False}, {"page_tokens": 32}])
def test_chunks_company_and_page_sizes_change_nothing(folders, expected, settings):
    engine = EngineHarness(*folders, **settings)
    assert engine.generate(*REQUESTS, max_tokens=90) == expected
    engine.assert_nothing_leaked()


def test_many_long_answers_run_in_an_arena_that_could_not_hold_them(folders, expected):
    """26 pages with the adapter's; the four requests have 578 tokens in the end, 38 pages, and keep at most 4 pages each."""
    page_bytes = EngineHarness(*folders).engine.ready().page_bytes
    engine = EngineHarness(*folders, memory_bytes=26 * page_bytes, max_model_len=256)
    engine.generate(*[([1, 2], None)] * 60, max_tokens=1)  # teaches the admission to expect short answers
    for prompt, adapter in REQUESTS:
        engine.submit(prompt, adapter, max_tokens=90)
    most = 0
    while engine.engine.has_work:
        engine.step()
        running = list(engine.scheduler._running)
        if all(entry.request.num_output_tokens for entry in running):
            most = max([most, *(len(entry.table.pages) - entry.table.num_dropped for entry in running)])
    assert most == -(-WINDOW // 16) + 1
    assert [answer.token_ids for answer in list(engine.answers.values())[60:]] == expected
    assert engine.scheduler.snapshot().num_preemptions == 0


def test_preempted_requests_say_the_same(folders):
    requests = [([7 + i, *range(3, 9)], name) for i, name in enumerate([None, "r4"] * 4)]
    cold = EngineHarness(*folders, enable_prefix_caching=False)
    expected = cold.generate(*requests, max_tokens=60)
    for is_caching in (False, True):
        page_bytes = cold.engine.ready().page_bytes
        engine = EngineHarness(*folders, memory_bytes=20 * page_bytes, max_model_len=190, enable_prefix_caching=is_caching)
        engine.generate(*[([1, 2], None)] * 60, max_tokens=1)
        assert engine.generate(*requests, max_tokens=60) == expected
        assert engine.scheduler.snapshot().num_preemptions > 0, "the arena was too large to show anything"
        engine.assert_nothing_leaked()


def test_a_conversation_goes_on_from_its_last_pages(folders):
    """Its first pages may have been evicted: what the next token sees is enough."""
    cold = EngineHarness(*folders, enable_prefix_caching=False)
    page_bytes = cold.engine.ready().page_bytes
    warm = EngineHarness(*folders, memory_bytes=14 * page_bytes, max_model_len=200)
    prompt = list(range(5, 105))
    [answer] = warm.generate((prompt, None), max_tokens=44)
    assert [answer] == cold.generate((prompt, None), max_tokens=44)
    # 9 pages are cached; taking 8 for another leaves the last ones of the conversation.
    warm.generate(([9] * 100, None), max_tokens=4)
    assert warm.scheduler._prefix_cache.num_evictions > 0
    follow_up = [*prompt, *answer, 3, 4, 5]
    request_id = warm.submit(follow_up)
    warm.run()
    usage = warm.answers[request_id].last.usage
    assert usage.cached_tokens == (len(prompt) + 43) // 16 * 16
    assert [warm.answers[request_id].token_ids] == cold.generate((follow_up, None))
