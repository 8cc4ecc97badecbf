"""Perplexity, divergence and agreement: against their definitions, and on models that are known to be alike."""

import math

import pytest
import torch

from evenflow.base.errors import ConfigError
from evenflow.bench.quality.comparison import compare, windows_of
from evenflow.bench.quality.scored_model import ModelChoice, ScoredModel
from evenflow.serving.models.random.random_model import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_model(path)
    return path


WINDOWS = [[(7 * i * i + 3 * w) % 320 for i in range(24)] for w in range(2)]


def choice(folder, quantization="none"):
    return ModelChoice(folder, quantization, "float32")


def test_figures_follow_their_definitions(folder):
    plain, rough = compare(choice(folder), [choice(folder, "int4-g32")], WINDOWS)
    models = [ScoredModel(choice(folder, form), 24) for form in ("none", "int4-g32")]
    losses, divergences, same = [], [], []
    for window in WINDOWS:
        p, q = (model.log_probs(window) for model in models)
        for t in range(23):
            losses.append(-float(q[t, window[t + 1]]))
            divergences.append(sum(math.exp(a) * (a - b) for a, b in zip(p[t].tolist(), q[t].tolist())))
            same.append(float(p[t].argmax() == q[t].argmax()))
    assert rough.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert rough.kl == pytest.approx(sum(divergences) / len(divergences), rel=1e-3)
    assert rough.agreement == pytest.approx(sum(same) / len(same))
    assert rough.perplexity_ratio == pytest.approx(rough.perplexity / plain.perplexity)
    assert rough.num_tokens == 46


def test_a_model_is_like_itself_and_more_bits_are_nearer(folder):
    plain, same, eight, four = compare(
        choice(folder), [choice(folder), choice(folder, "int8"), choice(folder, "int4-g32")], WINDOWS
    )
    assert (plain.kl, plain.agreement, plain.perplexity_ratio) == (0, 1, 1)
    assert (same.kl, same.agreement, same.perplexity_ratio) == (0, 1, 1)
    assert 0 < eight.kl < four.kl / 20
    assert eight.perplexity_ratio == pytest.approx(1, abs=0.02)


def test_windows_see_their_own_tokens_alone(folder):
    model = ScoredModel(choice(folder), 24)
    whole = model.log_probs(WINDOWS[0])
    model.log_probs(WINDOWS[1])
    assert torch.allclose(model.log_probs(WINDOWS[0][:9]), whole[:9], atol=1e-5)


def test_what_cannot_be_compared_is_refused(folder, tmp_path):
    make_model(tmp_path, vocab_size=400)
    with pytest.raises(ConfigError, match=r"400 tokens, .* has 320"):
        compare(choice(folder), [choice(tmp_path)], WINDOWS)
    with pytest.raises(ConfigError, match="the text has 5 tokens; a window of 8"):
        windows_of(range(5), 8, 100)
    with pytest.raises(ConfigError, match="a window has 1000 tokens"):
        ScoredModel(choice(folder), 1000)
    assert windows_of(range(20), 8, 17) == [list(range(8)), list(range(8, 16))]
