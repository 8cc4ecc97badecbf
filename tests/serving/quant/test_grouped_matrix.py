"""Formats of few bits: what quantising promises, and its inverse."""

import pytest
import torch

from evenflow.base.errors import ConfigError, ModelError
from evenflow.serving.quant.grouped_matrix import GroupedMatrix, quantise, stack
from evenflow.serving.quant.schemes import INT4, INT4_MIN, INT8, QUANTIZATIONS, SCHEMES, find_quantization


def weights(outputs=48, inputs=128, seed=0):
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=list(SCHEMES))
@pytest.mark.parametrize("inputs", [128, 80, 7])
def test_errors_are_below_half_a_level(scheme, inputs):
    weight = weights(inputs=inputs)
    made = quantise(weight, scheme)
    groups = torch.nn.functional.pad(weight, (0, -inputs % 32)).view(48, -1, 32)
    if scheme.has_minima:
        width = groups.amax(-1) - groups.amin(-1)
    else:
        width = 2 * groups.abs().amax(-1)
    # The scale with the least squared error may cut the largest weight a little.
    most = (0.6 if scheme.bits == 4 else 0.51) * 2 * width / (2**scheme.bits - 2)
    error = torch.nn.functional.pad((made.dequantise() - weight).abs(), (0, -inputs % 32)).view(48, -1, 32).amax(-1)
    assert (error <= most.clamp_min(1e-6) * (1.7 if scheme.bits == 4 else 1)).all()


def test_more_bits_are_nearer():
    weight = weights()
    errors = [(quantise(weight, scheme).dequantise() - weight).norm() / weight.norm() for scheme in (INT8, INT4_MIN, INT4)]
    assert errors[0] < 0.008
    assert errors[0] < errors[1] < errors[2] < 0.09


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=list(SCHEMES))
def test_what_a_format_holds_is_kept_exactly(scheme):
    made = quantise(weights(), scheme)
    again = quantise(made.dequantise(), INT8)
    assert torch.equal(quantise(torch.zeros(2, 64), scheme).dequantise(), torch.zeros(2, 64))
    assert (again.dequantise() - made.dequantise()).norm() < 0.008 * made.dequantise().norm()


def test_weights_that_are_no_numbers_are_refused():
    for bad in (float("nan"), float("inf")):
        weight = weights()
        weight[3, 5] = bad
        with pytest.raises(ModelError, match="not finite"):
            quantise(weight, INT8)
    with pytest.raises(ModelError, match="float16"):
        quantise(torch.full((1, 32), 1e9), INT4)


def test_parts_are_parts_of_the_whole():
    made = quantise(weights(), INT4_MIN)
    part = made.part(range(3, 20), range(32, 96))
    assert torch.equal(part.dequantise(), made.dequantise()[3:20, 32:96])
    with pytest.raises(ModelError, match="whole groups of 32"):
        made.part(range(48), range(16, 64))


def test_matrices_are_stacked_as_far_as_their_formats_allow():
    a, b, c = quantise(weights(), INT8), quantise(weights(seed=1), INT8), quantise(weights(seed=2), INT4)
    assert [m.shape[0] for m in stack([a, b, c])] == [96, 48]
    assert [m.shape[0] for m in stack([a, c, b])] == [48, 48, 48]
    assert torch.equal(stack([a, b])[0].dequantise(), torch.cat([a.dequantise(), b.dequantise()]))


def test_a_matrix_says_at_once_what_does_not_fit():
    made = quantise(weights(), INT8)
    with pytest.raises(AssertionError):
        GroupedMatrix(made.codes_OI, made.scales_OG[:, :2], None, 8)


def test_names():
    assert find_quantization("none") is None
    assert find_quantization("int4") is QUANTIZATIONS["int4"]
    with pytest.raises(ConfigError, match=r"quantization is 'int5'; allowed: none, int8"):
        find_quantization("int5")
