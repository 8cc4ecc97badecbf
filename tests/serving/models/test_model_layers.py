"""Norms and the gated activation of the CPU against torch, for any width, at any number of threads."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu, layer_norm, rms_norm, silu

from evenflow.serving.kernels import pointwise_cpu
from evenflow.serving.kernels.simd import element_of
from evenflow.serving.models.layers import NORMS, HeadNorm, RMSNorm, gate_rule, norm_columns, silu_and_multiply

EPS = 1e-5
DTYPES = {"fp32": (torch.float32, 1e-6), "bf16": (torch.bfloat16, 2**-8)}
"""Relative tolerance: one rounding to the dtype, and for fp32 the order of a sum."""


def close(actual, expected, tolerance):
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.float().abs().max()) / 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 100), st.sampled_from(sorted(DTYPES)), st.booleans(), st.integers(0, 999))
def test_norm_of_the_sum(num_rows, width, name, with_delta, seed):
    dtype, tolerance = DTYPES[name]
    generator = torch.Generator().manual_seed(seed)
    x, delta = (3 * torch.randn(2, num_rows, width, generator=generator)).to(dtype)
    weight = (1 + torch.randn(width, generator=generator)).to(dtype)
    total = x + delta if with_delta else x.clone()
    expected = rms_norm(total.float(), (width,), weight.float(), EPS).to(dtype)
    close(RMSNorm(weight, EPS)(x, delta if with_delta else None), expected, 2 * tolerance)
    assert torch.equal(x, total), "the residual stream takes exactly the rounded sum"


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("kind", ["rms 1 + w", "layer"])
def test_other_norms_and_weights_of_adapters(kind, name):
    dtype, tolerance = DTYPES[name]
    x, delta, weight, own = torch.randn(4, 3, 40).to(dtype)
    norm = NORMS[kind](weight[0], EPS)

    def expected(total, of):
        wide = total.float()
        if kind == "layer":
            return (layer_norm(wide, (40,), eps=EPS) * of.float()).to(dtype)
        return (rms_norm(wide, (40,), eps=EPS) * (1 + of.float())).to(dtype)

    total = x + delta
    close(norm(x, delta), expected(total, weight[0]), 2 * tolerance)
    assert torch.equal(x, total)
    close(norm.with_weight(x, own), expected(x, own), 2 * tolerance)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from(sorted(DTYPES)),
    st.floats(0.1, 100),
    st.integers(0, 999),
    st.sampled_from(["silu", "gelu tanh", "gelu"]),
)
def test_gates(num_rows, width, name, size, seed, activation):
    dtype, tolerance = DTYPES[name]
    gate_up = (size * torch.randn(num_rows, 2 * width, generator=torch.Generator().manual_seed(seed))).to(dtype)
    gate, up = gate_up.float().chunk(2, -1)
    rule = {"silu": silu, "gelu": gelu, "gelu tanh": partial(gelu, approximate="tanh")}[activation]
    close(gate_rule(activation)(gate_up), (rule(gate) * up).to(dtype), 2 * tolerance)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 24, 64])
def test_head_norm_leaves_values_alone(name, head_dim):
    dtype, tolerance = DTYPES[name]
    qkv = torch.randn(3, (4 + 2 + 2) * head_dim).to(dtype)
    q_weight, k_weight = (1 + torch.randn(2, head_dim)).to(dtype)
    heads = qkv.clone().view(3, 8, head_dim)
    expected = heads.clone()
    expected[:, :4] = rms_norm(heads[:, :4].float(), (head_dim,), q_weight.float(), EPS).to(dtype)
    expected[:, 4:6] = rms_norm(heads[:, 4:6].float(), (head_dim,), k_weight.float(), EPS).to(dtype)
    HeadNorm(q_weight, k_weight, 4, 2, EPS)(qkv)
    close(qkv.view(3, 8, head_dim), expected, 2 * tolerance)
    assert torch.equal(qkv.view(3, 8, head_dim)[:, 6:], heads[:, 6:])


@pytest.mark.parametrize("name", DTYPES)
def test_norm_of_some_columns_leaves_the_others_alone(name):
    dtype, tolerance = DTYPES[name]
    x, weight = torch.randn(5, 90).to(dtype), (1 + torch.randn(40)).to(dtype)
    found = x.clone()
    norm_columns(found, 24, weight, EPS)
    close(found[:, 24:64], rms_norm(x[:, 24:64].float(), (40,), weight.float(), EPS).to(dtype), 2 * tolerance)
    assert torch.equal(found[:, :24], x[:, :24])
    assert torch.equal(found[:, 64:], x[:, 64:])


def test_nothing_depends_on_the_number_of_threads():
    x, gate_up, weight = torch.randn(13, 48), torch.randn(13, 96), torch.randn(48)
    qkv = torch.randn(13, 8 * 16)
    element, eps = element_of(4), np.float32(EPS)
    results = []
    for threads in (1, 2, 5):
        h, y, out, act, heads = x.clone(), x * 2, torch.empty(13, 48), torch.empty(13, 48), qkv.clone()
        w = weight.data_ptr()
        pointwise_cpu.add_and_norm(element, element, threads, 13, h.data_ptr(), y.data_ptr(), out.data_ptr(), w, eps, 48)
        pointwise_cpu.silu_and_multiply(element, threads, 13, gate_up.data_ptr(), act.data_ptr(), 48)
        pointwise_cpu.norm_heads(element, element, threads, 13, heads.data_ptr(), 128, 4, 2, 16, w, w, eps)
        results.append((h, out, act, heads))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    x = torch.ones(2, 32)
    x[1, 3] = bad
    out = RMSNorm(torch.ones(32), EPS)(x.clone())
    assert torch.isfinite(out[0]).all()
    assert not torch.isfinite(out[1]).all()
    act = silu_and_multiply(torch.cat([x, x], -1))
    assert torch.isfinite(act[0]).all()
    assert not torch.isfinite(act[1, 3])
