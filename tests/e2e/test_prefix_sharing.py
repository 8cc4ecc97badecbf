"""Prefixes are shared where K and V are the same, and nowhere else: what other servers got wrong (adapters, reloads)."""

from __future__ import annotations

import shutil

import pytest
from engine_harness import EngineHarness

PROMPT = list(range(5, 5 + 50))
"""Three full pages of 16 tokens, and a bit."""


@pytest.fixture(scope="module")
def cold(tiny_model, tiny_adapters):
    """An engine that never reuses anything."""
    return EngineHarness(tiny_model, tiny_adapters, enable_prefix_caching=False)


@pytest.fixture
def warm(tiny_model, tiny_adapters):
    return EngineHarness(tiny_model, tiny_adapters)


def cached_tokens(harness, prompt=PROMPT, adapter=None, **options) -> tuple[int, list[int]]:
    request_id = harness.submit(prompt, adapter, **options)
    harness.run()
    answer = harness.answers[request_id]
    return answer.last.usage.cached_tokens, answer.token_ids


def test_a_prefix_is_computed_once_and_changes_no_token(cold, warm):
    expected = cold.generate((PROMPT, "r8"))[0]
    assert cached_tokens(warm, adapter="r8") == (0, expected)
    computed = warm.scheduler.snapshot().prompt_tokens
    assert cached_tokens(warm, adapter="r8") == (48, expected)
    assert warm.scheduler.snapshot().prompt_tokens - computed == 2
    longer = [*PROMPT[:40], 9, 9, 9, 9, 9, 9, 9, 9, 9]
    assert cached_tokens(warm, longer, "r8") == (32, cold.generate((longer, "r8"))[0])
    whole_pages = PROMPT[:48]
    assert cached_tokens(warm, whole_pages, "r8") == (32, cold.generate((whole_pages, "r8"))[0]), "the last token is computed"
    warm.assert_nothing_leaked()


def test_a_conversation_goes_on_where_it_ended(cold, warm):
    _, answer = cached_tokens(warm, max_tokens=30)
    follow_up = [*PROMPT, *answer, 3, 4, 5]
    cached, tokens = cached_tokens(warm, follow_up)
    assert cached == (len(PROMPT) + 29) // 16 * 16, "every page that was full, answers included"
    assert [tokens] == cold.generate((follow_up, None))


def test_concurrent_requests_share_as_soon_as_the_first_prompt_is_computed(cold, warm):
    expected = cold.generate((PROMPT, "r1"))[0]
    first = warm.submit(PROMPT, "r1")
    warm.step()
    later = [warm.submit(PROMPT, "r1") for _ in range(4)]
    warm.step()
    snapshot = warm.scheduler.snapshot()
    assert snapshot.num_running == 5
    assert snapshot.num_kv_pages == 3 + 5, "three shared pages, one of its own for each"
    warm.run()
    for request_id in (first, *later):
        assert warm.answers[request_id].token_ids == expected
    warm.assert_nothing_leaked()


def test_nothing_is_shared_between_adapters_or_with_the_base(cold, warm, tiny_adapters):
    names = [None, *tiny_adapters]
    expected = dict(zip(names, cold.generate(*((PROMPT, name) for name in names))))
    for name in names:
        assert cached_tokens(warm, adapter=name) == (0, expected[name]), f"{name} met somebody else's prefix"
    for name in reversed(names):
        assert cached_tokens(warm, adapter=name) == (48, expected[name])


def test_two_names_of_the_same_weights_share(cold, warm, tiny_adapters, tmp_path):
    warm.load("alias", shutil.copytree(tiny_adapters["r8"], tmp_path / "copy"))
    cached_tokens(warm, adapter="r8")
    assert cached_tokens(warm, adapter="alias") == (48, cold.generate((PROMPT, "r8"))[0])


def test_other_weights_under_the_same_name_never_meet_the_old_prefix(cold, tiny_model, tiny_adapters):
    harness = EngineHarness(tiny_model, {"name": tiny_adapters["r1"]})
    old = cached_tokens(harness, adapter="name")
    harness.load("name", tiny_adapters["r3"], replace=True)
    new = cached_tokens(harness, adapter="name")
    assert (old, new) == ((0, cold.generate((PROMPT, "r1"))[0]), (0, cold.generate((PROMPT, "r3"))[0]))
    harness.load("name", tiny_adapters["r1"], replace=True)
    assert cached_tokens(harness, adapter="name") == old, "its pages went with it"


def test_an_unload_frees_the_prefixes_computed_under_the_adapter(warm):
    cached_tokens(warm)
    kept = warm.scheduler.snapshot().num_idle_cache_pages
    cached_tokens(warm, adapter="r8")
    assert warm.scheduler.snapshot().num_idle_cache_pages == 2 * kept
    warm.engine.unload_adapter("r8")
    assert warm.scheduler.snapshot().num_idle_cache_pages == kept
    warm.scheduler.check_integrity()


def test_a_salt_keeps_prefixes_apart(warm):
    cached_tokens(warm, salt="tenant a")
    assert cached_tokens(warm, salt="tenant b")[0] == 0
    assert cached_tokens(warm)[0] == 0
    assert cached_tokens(warm, salt="tenant a")[0] == 48


def test_scores_of_the_prompt_need_the_prompt_computed(cold, warm):
    cached_tokens(warm)
    request_id = warm.submit(PROMPT, prompt_logprobs=1)
    warm.run()
    last = warm.answers[request_id].last
    assert last.usage.cached_tokens == 0
    assert warm.answers[request_id].token_ids == cold.generate((PROMPT, None))[0]


def test_adapters_kv_and_prefixes_take_turns_in_a_small_arena(cold, tiny_model, tiny_adapters):
    requests = [([*range(3, 40), i], name) for name in tiny_adapters for i in range(6)]
    expected = cold.generate(*requests)
    page_bytes = cold.engine.ready().page_bytes
    largest = max(cold.engine.catalog.record(digest).num_pages for digest in cold.engine.catalog)
    small = EngineHarness(tiny_model, tiny_adapters, memory_bytes=(largest + 8) * page_bytes, max_model_len=96, max_num_seqs=4)
    assert small.generate(*requests) == expected
    snapshot = small.scheduler.snapshot()
    assert snapshot.cached_tokens > 0
    assert snapshot.num_adapter_evictions > 0
    small.assert_nothing_leaked()


def test_a_request_that_computed_nonsense_leaves_no_prefix(tiny_model, tiny_adapters, tmp_path):
    from safetensors.numpy import load_file, save_file

    broken = shutil.copytree(tiny_adapters["r8"], tmp_path / "broken")
    tensors = load_file(broken / "adapter_model.safetensors")
    save_file({name: tensor * 1e30 for name, tensor in tensors.items()}, broken / "adapter_model.safetensors")
    harness = EngineHarness(tiny_model, {"broken": broken})
    request_id = harness.submit(PROMPT, "broken")
    harness.run()
    assert harness.answers[request_id].last.error_type is not None
    assert harness.scheduler.snapshot().num_idle_cache_pages == 0
    harness.assert_nothing_leaked()


def test_cached_tokens_have_their_own_price(warm):
    cached_tokens(warm)
    request_id = warm.submit(PROMPT, max_tokens=4)
    warm.run()
    assert warm.answers[request_id].last.usage.service == pytest.approx(2 * 1 + 48 * 0.1 + 4 * 2)
