"""The sampler against brute force: which tokens may come, how often, with which log-probabilities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evenflow.serving.core.plan import SampleSpec
from evenflow.serving.core.sampling import GREEDY, SamplingParams
from evenflow.serving.runner.sampler import NOT_FINITE, Sampler, token_logprobs, uniform

V = 24


def spec(prompt=(), output=(), salt=0, **fields):
    return SampleSpec(SamplingParams(max_tokens=None, **fields), list(prompt), list(output), salt)


def brute_force_logits(logits, s, eos):
    """Logits after bias, bans and penalties, token by token."""
    p = s.sampling
    said = tuple(s.output_token_ids)
    banned = {word[-1] for word in p.bad_word_ids if said[len(said) - len(word) + 1 :] == word[:-1] or len(word) == 1}
    free = [
        token for token in range(len(logits)) if token in (p.allowed_token_ids or range(len(logits))) and token not in banned
    ]
    out = [float(x) if token in free else -math.inf for token, x in enumerate(logits)]
    for token, bias in p.logit_bias:
        if token < len(out):
            out[token] += bias
    if len(s.output_token_ids) < p.min_tokens:
        for token in {*p.stop_token_ids, *(() if p.ignore_eos else eos)}:
            out[token] = -math.inf
    if max(out) == -math.inf:
        return [0.0 if token in free else -math.inf for token in range(len(out))]
    for token in range(len(out)):
        if token in s.prompt_token_ids or token in s.output_token_ids:
            out[token] = out[token] / p.repetition_penalty if out[token] > 0 else out[token] * p.repetition_penalty
        count = list(s.output_token_ids).count(token)
        out[token] -= p.frequency_penalty * count + p.presence_penalty * (count > 0)
    return out


def brute_force_probs(logits, s, eos=()):
    """The distribution a token is drawn from: temperature, min_p, top_k, top_p, one after another."""
    p = s.sampling
    scaled = np.array(brute_force_logits(logits, s, eos), np.float64) / p.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    probs[probs < p.min_p * probs.max()] = 0
    order = np.argsort(-probs, kind="stable")
    if p.top_k >= 1:
        probs[order[p.top_k :]] = 0
    total, so_far = probs.sum(), 0.0
    for token in order:
        if so_far >= p.top_p * total and p.top_p < 1:
            probs[token] = 0
        so_far += probs[token]
    return probs / probs.sum()


def draw(logits, specs, sampler=None):
    return [t.token_id for t in (sampler or Sampler())(logits, specs)]


sampling_fields = st.fixed_dictionaries(
    {},
    optional={
        "top_k": st.sampled_from([-1, 0, 1, 2, 5, V, 3 * V]),
        "top_p": st.sampled_from([1e-6, 0.1, 0.5, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        "temperature": st.sampled_from([0.05, 0.7, 1.0, 3.0]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.7]),
        "presence_penalty": st.sampled_from([-1.5, 0.0, 2.0]),
        "frequency_penalty": st.sampled_from([-0.5, 0.0, 1.0]),
        "logit_bias": st.sampled_from([(), ((3, 7.5), (V + 5, 1.0)), ((0, -100.0), (1, 100.0))]),
        "min_tokens": st.sampled_from([0, 2, 9]),
        "stop_token_ids": st.sampled_from([(), (4, 5)]),
        "ignore_eos": st.booleans(),
        "allowed_token_ids": st.sampled_from([None, (0, 4), (1, 2, 3, 9, 4 * V), tuple(range(V))]),
        "bad_word_ids": st.sampled_from([(), ((3,),), ((1, 2), (1, 1, 9), (9, 9, 9)), ((5,), (2, 9))]),
        "seed": st.integers(-(2**63), 2**64),
    },
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(sampling_fields, st.lists(st.integers(0, V - 1), max_size=6)), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
def test_only_tokens_of_the_right_distribution_come_at_the_right_place(rows, noise):
    logits = torch.randn(len(rows), V, generator=torch.Generator().manual_seed(noise)) * 3
    before = logits.clone()
    specs = [spec(prompt=[1, 2, 2], output=output, salt=i, **fields) for i, (fields, output) in enumerate(rows)]
    tokens = draw(logits, specs, Sampler(eos_token_ids=(0,)))
    assert torch.equal(before, logits), "the model's logits were changed"
    for row, token, s in zip(logits.tolist(), tokens, specs):
        expected = brute_force_logits(row, s, (0,))
        if len({value for value in expected if value > -math.inf}) == 1:  # equal tokens have no order
            assert expected[token] > -math.inf
            continue
        if s.sampling.is_greedy:
            assert expected[token] == pytest.approx(max(expected), rel=1e-5, abs=1e-5)
            continue
        probs = brute_force_probs(row, s, (0,))
        assert probs[token] > 0
        if s.sampling.top_k < 1 and s.sampling.top_p == 1:
            ends = np.cumsum(probs)
            u = uniform(s.salt if s.sampling.seed is None else s.sampling.seed, len(s.output_token_ids))
            assert ends[token] - probs[token] - 1e-5 <= u <= ends[token] + 1e-5


@settings(max_examples=60, deadline=None)
@given(st.lists(sampling_fields, min_size=1, max_size=4), st.integers(0, 2**31))
def test_a_row_alone_equals_the_row_in_any_batch(rows, noise):
    logits = torch.randn(len(rows) + 2, V, generator=torch.Generator().manual_seed(noise)) * 3
    specs = [spec(output=[1] * i, salt=i, **fields) for i, fields in enumerate(rows)]
    others = [spec(temperature=0.3, top_k=7, salt=99), SampleSpec(GREEDY, [], [], 0)]
    together = draw(logits, [*specs, *others])
    reversed_ = draw(logits.flip(0), [*specs, *others][::-1])[::-1]
    alone = [draw(logits[i : i + 1], [s])[0] for i, s in enumerate(specs)]
    assert together[: len(rows)] == alone
    assert reversed_ == together


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 2.0}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.7, "temperature": 1.5}],
)
def test_tokens_come_as_often_as_they_should(fields):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(1, V, generator=generator) * 1.5
    num_draws = 4000
    specs = [spec(output=[0] * (i % 7), salt=1000 + i, **fields) for i in range(num_draws)]
    counts = np.bincount(draw(logits.expand(num_draws, V), specs), minlength=V)
    expected = brute_force_probs(logits[0].tolist(), specs[0]) * num_draws
    assert counts[expected == 0].sum() == 0
    likely = expected >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum())
    keep = wanted > 0
    # The draws are fixed by their salts, so this never fails by chance.
    assert stats.chisquare(observed[keep], wanted[keep]).pvalue > 1e-3


def test_the_nucleus_of_a_large_vocabulary_is_exact():
    size = 5000
    logits = torch.zeros(3, size)
    logits[1] = torch.linspace(0, 4, size)
    logits[2, 7] = 50.0
    specs = [spec(top_p=p, seed=seed) for p, seed in ((0.999, 1), (0.9, 2), (0.5, 3))]
    probs = [brute_force_probs(row.tolist(), s) for row, s in zip(logits, specs)]
    for seed in range(200):
        specs = [spec(top_p=s.sampling.top_p, seed=seed) for s in specs]
        tokens = draw(logits, specs)
        assert all(p[t] > 0 for p, t in zip(probs[1:], tokens[1:]))
    assert tokens[2] == 7
    # A uniform row reaches far beyond the first candidates.
    far = [draw(logits[:1], [spec(top_p=0.999, seed=s)])[0] for s in range(50)]
    assert len(set(far)) > 40


def test_greedy_takes_the_likeliest_and_never_sorts(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("greedy rows need no order")

    for name in ("sort", "topk", "argsort", "softmax", "cumsum"):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    logits = torch.randn(6, V).bfloat16()
    specs = [SampleSpec(GREEDY, [], [], 0)] * 4 + [spec(top_k=1)] + [spec(temperature=0.0, repetition_penalty=1.5)]
    assert draw(logits, specs) == logits.float().argmax(-1).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("fields", [{"temperature": 0.0, "logprobs": 2}, {"top_p": 0.9}, {"top_k": 3, "min_p": 0.1}, {}])
def test_a_row_that_is_not_finite_is_an_error_of_that_row_alone(bad, fields):
    logits = torch.randn(3, V)
    sound = Sampler()(logits, [spec(salt=i, **fields) for i in range(3)])
    logits[1, 5] = bad
    broken = Sampler()(logits, [spec(salt=i, **fields) for i in range(3)])
    assert broken[1].error == NOT_FINITE
    assert (broken[0], broken[2]) == (sound[0], sound[2])
    assert sound[1].error is None


def test_the_seed_decides_whatever_the_request_and_its_batch():
    logits = torch.randn(1, V)
    first = [draw(logits, [spec(output=[0] * i, seed=7, salt=i)])[0] for i in range(30)]
    again = [draw(logits, [spec(output=[3] * i, seed=7, salt=i + 50)])[0] for i in range(30)]
    other = [draw(logits, [spec(output=[0] * i, seed=8, salt=i)])[0] for i in range(30)]
    assert first == again != other
    assert len(set(first)) > 3


def test_uniform_numbers_are_uniform_and_independent():
    values = np.array([[uniform(seed, index) for index in range(60)] for seed in range(60)])
    assert 0 <= values.min() < values.max() < 1
    assert stats.kstest(values.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.06
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.06
    assert uniform(2**64 + 5, 0) != uniform(5, 0)


def test_logprobs_are_the_models_own_before_penalties_and_temperature():
    logits = torch.randn(3, V)
    specs = [
        spec(output=[4], logprobs=3, temperature=0.0, repetition_penalty=1.9, logit_bias=((2, 50.0),)),
        spec(logprobs=0, temperature=2.5, seed=4),
        spec(seed=4),
    ]
    results = Sampler()(logits, specs)
    expected = logits.double().log_softmax(-1)
    assert results[0].token_id == 2
    for row, count in ((0, 3), (1, 0)):
        entry = results[row].logprobs
        assert entry.token_id == results[row].token_id
        assert entry.logprob == pytest.approx(float(expected[row, entry.token_id]), abs=1e-5)
        assert entry.token_rank == 1 + int((expected[row] > expected[row, entry.token_id]).sum())
        order = expected[row].argsort(descending=True)[:count].tolist()
        assert [token for token, _ in entry.top] == order
        assert [value for _, value in entry.top] == pytest.approx([float(expected[row, t]) for t in order], abs=1e-5)
    assert results[2].logprobs is None


def test_logprobs_of_a_prompt_in_slices_equal_those_at_once(monkeypatch):
    logits, ids = torch.randn(9, V).bfloat16(), list(range(9))
    whole = token_logprobs(logits, ids, 2)
    assert whole[3].logprob == pytest.approx(float(logits[3].double().log_softmax(-1)[3]), abs=1e-5)
    monkeypatch.setattr("evenflow.serving.runner.sampler._SLICE_ELEMENTS", 2 * V)
    assert token_logprobs(logits, ids, 2) == whole
    assert token_logprobs(logits[:0], [], 2) == []


def test_min_tokens_bans_the_ends_until_they_are_reached():
    logits = torch.zeros(1, V)
    logits[0, 0], logits[0, 4], logits[0, 9] = 9.0, 8.0, 7.0
    sampler = Sampler(eos_token_ids=(0,))

    def greedy(num_output, **fields):
        return draw(logits, [spec(output=[1] * num_output, temperature=0.0, min_tokens=2, **fields)], sampler)

    assert greedy(0, stop_token_ids=(4,)) == [9]
    assert greedy(1) == [4]
    assert greedy(2, stop_token_ids=(4,)) == [0]
    assert greedy(0, ignore_eos=True) == [0]


def test_what_is_kept_between_steps_changes_no_choice():
    """Requests come, go, are preempted and return; each token is the one that a sampler without a past chooses."""
    draw = torch.Generator().manual_seed(3)
    kept = Sampler()
    fields = {"repetition_penalty": 1.7, "presence_penalty": 0.9, "frequency_penalty": 0.7, "logit_bias": ((3, 4.0), (99, 1.0))}
    fields |= {"min_tokens": 20, "stop_token_ids": (5, 6, 99)}
    first = SamplingParams(temperature=0.0, max_tokens=None, **fields)
    other = SamplingParams(temperature=0.0, max_tokens=None, **{**fields, "logit_bias": ((7, 3.0),), "stop_token_ids": (1,)})
    requests = [([1, 2, 3 + i], [], first if i % 2 else other) for i in range(6)]
    for step in range(40):
        running = [request for i, request in enumerate(requests) if (step // 5 + i) % 3]
        specs = [SampleSpec(sampling, prompt, output, salt=0) for prompt, output, sampling in running]
        logits = torch.randn(len(running), 24, generator=draw)
        fresh = [SampleSpec(sampling, list(prompt), list(output), salt=0) for prompt, output, sampling in running]
        chosen = [token.token_id for token in kept(logits, specs)]
        assert chosen == [token.token_id for token in Sampler()(logits, fresh)]
        for (_, output, _), token in zip(running, chosen, strict=True):
            output.append(token)


def test_a_row_whose_rules_leave_nothing_is_refused_and_its_neighbours_are_not():
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(2))
    empty = spec(allowed_token_ids=(3,), bad_word_ids=((3,),))
    first, refused, last = Sampler()(logits, [spec(temperature=0.0), empty, spec(temperature=0.0, allowed_token_ids=(7, 8))])
    assert (first.token_id, first.error) == (int(logits[0].argmax()), None)
    assert refused.error_type == "ConstraintFailed"
    assert "allowed_token_ids and bad_words" in refused.error
    assert last.token_id == (7 if logits[2, 7] > logits[2, 8] else 8)
