"""What an engine answers to requests, good and bad, aborted and cut short."""

from __future__ import annotations

import time

import pytest
from engine_harness import Answer, EngineHarness

from evenflow.base.errors import ConfigError
from evenflow.serving.client.messages import RequestOutput, Submit
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.sampling import SamplingParams


@pytest.fixture(scope="module")
def engine(tiny_model, tiny_adapters):
    return EngineHarness(tiny_model, tiny_adapters, max_model_len=64)


def test_usage_counts_tokens_and_times(engine):
    request = engine.submit([3, 4, 5], "r3", max_tokens=5)
    engine.run()
    usage = engine.answers[request].last.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.service) == (3, 5, 3 + 2 * 5)
    assert usage.queue_s >= 0
    assert usage.prefill_s > 0
    assert usage.decode_s > 0
    assert engine.answers[request].last.finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "adapter", "sampling", "kind", "message"),
    [
        ([], None, {}, "InvalidRequest", "no tokens"),
        ([1, 320], None, {}, "InvalidRequest", "0 to 319"),
        ([1, -1], None, {}, "InvalidRequest", "0 to 319"),
        ([1] * 64, None, {}, "PromptTooLong", "maximum context length is 64 tokens"),
        ([1], "nobody", {}, "AdapterNotFound", "nobody"),
        ([1], None, {"logit_bias": ((320, 1.0),)}, "InvalidRequest", "logit_bias"),
    ],
)
def test_what_cannot_be_served_is_refused_and_said(engine, prompt, adapter, sampling, kind, message):
    request = engine.submit(prompt, adapter, **sampling)
    refusal = engine.answers[request].last
    assert refusal.error_type == kind
    assert message in refusal.error
    assert not engine.engine.has_work


def test_max_tokens_none_goes_to_the_end_of_the_context(engine):
    assert len(engine.generate(([1] * 10, None), max_tokens=None)[0]) == 54


def test_a_request_that_comes_too_late_is_given_up_and_leaves_nothing(engine):
    """A minute on the scheduler's own clock passes between its arrival and the step that would have started it."""
    expected = engine.generate(([5, 6, 7], "r8"), max_tokens=12)[0]
    late = SamplingParams(temperature=0.0, max_tokens=8)
    arrived_s = time.monotonic() - 60.0
    assert engine.engine.submit(Submit("late", "c", [1, 2], late, "r3", arrived_s, slo_ttft_s=5.0)) is None
    engine.answers["late"] = Answer([], "", RequestOutput("late"))
    in_time = engine.submit([5, 6, 7], "r8", max_tokens=12)
    engine.run()
    last = engine.answers["late"].last
    assert last.error_type == "SLOUnreachable"
    assert last.predicted_ttft_s >= 60.0
    assert last.retry_after_s >= 55.0
    assert engine.answers[in_time].token_ids == expected
    assert engine.engine.stats().num_shed == 1
    engine.assert_nothing_leaked()


def test_aborting_at_any_time_gives_everything_back(engine):
    expected = engine.generate(([5, 6, 7], "r8"), max_tokens=12)[0]
    for steps in range(6):
        gone = [engine.submit([9] * 30, name, max_tokens=30) for name in ("r64", None)]
        stays = engine.submit([5, 6, 7], "r8", max_tokens=12)
        for _ in range(steps):
            engine.step()
        engine.engine.abort([*gone, "never-heard-of"])
        engine.run()
        assert engine.answers[stays].token_ids == expected
        assert all(engine.answers[i].last.finish_reason is None for i in gone)
        engine.assert_nothing_leaked()


def test_the_rank_of_the_chosen_token_is_reported(engine):
    """The likeliest token has rank 1; where it is banned, the next one is chosen and keeps its rank among all."""
    prompt = list(range(3, 30))
    favourite = engine.submit(prompt, max_tokens=1, logprobs=1)
    engine.run()
    (first,) = engine.answers[favourite].last.logprobs
    assert (first.token_rank, first.token_id) == (1, first.top[0][0])
    runner_up = engine.submit(prompt, max_tokens=1, logprobs=2, logit_bias=((first.token_id, -100.0),))
    engine.run()
    (second,) = engine.answers[runner_up].last.logprobs
    assert (second.token_rank, second.token_id) == (2, second.top[1][0])


def test_prompt_logprobs_are_the_same_in_one_chunk_or_many(engine, tiny_model, tiny_adapters):
    prompt = [(7 * i) % 300 for i in range(40)]
    chunked = EngineHarness(tiny_model, tiny_adapters, max_batch_tokens=16, max_model_len=64)
    scores = []
    for harness in (engine, chunked):
        request = harness.submit(prompt, "r3", prompt_logprobs=2, max_tokens=1)
        harness.run()
        scores.append(harness.answers[request].last.prompt_logprobs)
    whole, pieces = scores
    assert len(whole) == len(pieces) == len(prompt)
    assert whole[0] is pieces[0] is None
    for expected, got, token_id in zip(whole[1:], pieces[1:], prompt[1:], strict=True):
        assert expected.token_id == got.token_id == token_id
        assert got.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert len(got.top) == 2
        assert got.top[0][2] >= got.top[1][2]


def test_a_seed_gives_the_same_text_beside_anybody(engine):
    options = {"temperature": 1.0, "seed": 7, "max_tokens": 10}
    alone = engine.generate(([5, 6], None), **options)[0]
    crowd = [engine.submit([9, i], "r3", temperature=1.0) for i in range(5)]
    request = engine.submit([5, 6], None, **options)
    engine.run()
    assert engine.answers[request].token_ids == alone
    assert len({tuple(engine.answers[i].token_ids) for i in crowd}) == len(crowd)


def test_a_stop_string_ends_the_text_and_frees_the_pages(engine):
    request = engine.submit([5, 6, 7], max_tokens=20)
    engine.run()
    text = engine.answers[request].text
    middle = next(i for i in range(3, len(text)) if text[i].isascii())
    stop = text[middle : middle + 2]
    stopped = engine.submit([5, 6, 7], max_tokens=20, stop=(stop,))
    engine.run()
    answer = engine.answers[stopped]
    assert answer.text == text[: text.index(stop)]
    assert (answer.last.finish_reason, answer.last.stop_reason) == ("stop", stop)
    engine.assert_nothing_leaked()


def test_pinned_adapters_stay_and_unpinned_go(engine):
    engine.engine.pin_adapter("r64", True)
    info = engine.engine.adapters({"r64"})[0]
    assert (info.state, info.is_pinned) == ("resident", True)
    engine.engine.pin_adapter("r64", False)
    assert not engine.engine.adapters({"r64"})[0].is_pinned


def test_stats_tell_who_had_what(engine):
    before = engine.engine.stats()
    engine.submit([1, 2, 3], "r1", client="alice", max_tokens=4)
    engine.submit([1, 2], client="bob", max_tokens=2)
    engine.step()
    during = engine.engine.stats()
    assert during.num_running == 2
    assert during.running_adapters == ["r1"]
    engine.run()
    after = engine.engine.stats()
    assert after.prompt_tokens - before.prompt_tokens == 5
    assert after.completion_tokens - before.completion_tokens == 6
    assert (after.clients["alice"].prompt_tokens, after.clients["alice"].completion_tokens) == (3, 4)
    assert after.clients["alice"].service == 3 + 2 * 4
    assert after.clients["bob"].service == 2 + 2 * 2
    assert after.num_running == after.num_waiting == 0
    assert after.tokens_per_s > 0


def test_an_engine_that_may_start_nobody_says_so_and_goes_on_later(tiny_model, monkeypatch):
    harness = EngineHarness(tiny_model)
    request = harness.submit([1, 2, 3], max_tokens=2)
    with monkeypatch.context() as patch:
        patch.setattr(harness.scheduler.policy, "pick", lambda now_s: None)
        harness.step()
        assert harness.engine.is_stalled
        assert harness.engine.has_work
    harness.run()
    assert not harness.engine.is_stalled
    assert len(harness.answers[request].token_ids) == 2


def test_a_request_that_breaks_the_engines_own_code_is_refused_alone(tiny_model, monkeypatch):
    harness = EngineHarness(tiny_model)
    expected = harness.generate(([1, 2, 3], None))
    with monkeypatch.context() as patch:
        patch.setattr("evenflow.serving.engine.engine.Reply", None)
        broken = harness.submit([1, 2, 3])
    assert "could not be queued" in harness.answers[broken].last.error
    assert harness.generate(([1, 2, 3], None)) == expected
    harness.assert_nothing_leaked()


def test_weights_that_make_no_sense_change_nothing(tiny_model):
    harness = EngineHarness(tiny_model)
    harness.engine.set_weights({"gold": 4.0}, {"gold": "upper"}, {"upper": 2.0})
    harness.engine.set_weights({"gold": 2.0, "broken": 0.0})
    harness.engine.set_weights({"gold": 2.0}, {"gold": "upper"}, {"upper": -1.0})
    harness.engine.set_weights({"gold": 2.0}, {"gold": "unknown"}, {"upper": 1.0})
    harness.submit([1, 2], client="gold", max_tokens=1)
    harness.submit([1, 2], client="broken", max_tokens=1)
    harness.run()
    stats = harness.engine.stats()
    assert (stats.clients["gold"].weight, stats.clients["broken"].weight) == (8.0, 1.0)


def test_the_engines_config_carries_tiers_to_its_policy(tiny_model):
    tiers = {"tier_by_client": {"a": "gold"}, "weight_by_tier": {"gold": 3.0}}
    for policy, expected in (("hierarchy", 3.0), ("vtc", 3.0)):
        harness = EngineHarness(tiny_model, policy=policy, max_num_seqs=2, max_batch_tokens=16, **tiers)
        for client in ("a", "b", "c"):
            for _ in range(40):
                harness.submit([1, 2, 3], client=client, max_tokens=3)
        while sum(client.completion_tokens for client in harness.engine.stats().clients.values()) < 150:
            harness.step()
        had = {name: client.service for name, client in harness.engine.stats().clients.items()}
        others = had["b"] + had["c"] if policy == "hierarchy" else had["b"]
        assert had["a"] / others == pytest.approx(expected, rel=0.2), (policy, had)
    with pytest.raises(ConfigError, match="known tiers: none"):
        EngineConfig(model=tiny_model, tier_by_client={"a": "gold"})


def test_closing_the_engine_closes_what_its_policy_holds(tiny_model):
    harness = EngineHarness(tiny_model)
    closed = []
    harness.scheduler.policy.close = lambda: closed.append(True)
    harness.engine.close()
    assert closed == [True]
