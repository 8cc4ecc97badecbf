"""The vector type's operations, against numpy and torch."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch

from evenflow.serving.kernels import simd

ELEMENTS = {"bf16": (torch.bfloat16, simd.element_of(2)), "fp32": (torch.float32, simd.element_of(4))}


@numba.njit
def copy(element_in, source, element_out, target, n):
    step_in, step_out = simd.itemsize(element_in), simd.itemsize(element_out)
    for i in range(0, n // 16 * 16, 16):
        simd.store(element_out, target + step_out * i, simd.load(element_in, source + step_in * i))
    for i in range(n // 16 * 16, n):
        simd.store_one(element_out, target + step_out * i, simd.load_one(element_in, source + step_in * i))


@numba.njit
def exponentials(source, target, n):
    for i in range(0, n, 16):
        simd.store_f32(target + 4 * i, simd.exp(simd.load_f32(source + 4 * i)))


@numba.njit
def reductions(source, target):
    x = simd.load_f32(source)
    simd.store_one_f32(target, simd.lane_sum(x))
    simd.store_one_f32(target + 4, simd.lane_max(x))
    simd.store_one_f32(target + 8, simd.first_lane(x))
    simd.store_f32(target + 64, simd.broadcast(simd.load_one_f32(source + 4)))


@numba.njit
def four_sums(source, target):
    a, b = simd.load_f32(source), simd.load_f32(source + 64)
    c, d = simd.load_f32(source + 128), simd.load_f32(source + 192)
    simd.store_lane_sums(target, a, b, c, d)
    simd.store_one_f32(target + 16, simd.lane_sum(a))
    simd.store_one_f32(target + 20, simd.lane_sum(b))
    simd.store_one_f32(target + 24, simd.lane_sum(c))
    simd.store_one_f32(target + 28, simd.lane_sum(d))


@numba.njit
def arithmetic(x, y, z, target):
    a, b, c = simd.load_f32(x), simd.load_f32(y), simd.load_f32(z)
    simd.store_f32(target, simd.fma(a, b, c))
    simd.store_f32(target + 64, simd.mul(a, b))
    simd.store_f32(target + 128, simd.add(a, b))
    simd.store_f32(target + 192, simd.sub(a, b))
    simd.store_f32(target + 256, simd.zeros())


def awkward_floats() -> torch.Tensor:
    """Ties, neighbours of ties, infinities, NaN with low payload bits, zeros of both signs, and random values."""
    bits = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F800000, 0xFF800000, 0x7F800001]
    bits += [0x7FFFFFFF, 0xFFFFFFFF, 0, 1 << 31]
    special = torch.from_numpy(np.array(bits, np.uint32).view(np.float32))
    return torch.cat([special, torch.randn(60, generator=torch.Generator().manual_seed(0))]).clone()


@pytest.mark.parametrize("source", ELEMENTS)
@pytest.mark.parametrize("target", ELEMENTS)
def test_loads_widen_and_stores_round_like_torch(source, target):
    (type_in, element_in), (type_out, element_out) = ELEMENTS[source], ELEMENTS[target]
    x = awkward_floats().to(type_in)
    y = torch.zeros(len(x), dtype=type_out)
    copy(element_in, x.data_ptr(), element_out, y.data_ptr(), len(x))
    torch.testing.assert_close(y, x.to(type_out), rtol=0, atol=0, equal_nan=True)


def test_exp_is_right_to_the_last_bits():
    x = torch.cat([torch.linspace(-87, 0, 16 * 4000), -torch.logspace(-30, 1, 1600)])
    y = torch.zeros_like(x)
    exponentials(x.data_ptr(), y.data_ptr(), len(x))
    assert ((y.double() - x.double().exp()) / x.double().exp()).abs().max() < 2.5e-7


def test_exp_keeps_nan_and_flattens_the_very_small():
    x = torch.tensor([torch.nan, -torch.inf, -1e30, -88.0, 0.0, -0.0] + [-1.0] * 10)
    y = torch.zeros_like(x)
    exponentials(x.data_ptr(), y.data_ptr(), 16)
    assert y[0].isnan()
    assert (y[1:4] < 2e-38).all()
    assert (y[4:6] == 1).all()


def test_reductions():
    x = torch.randn(16, generator=torch.Generator().manual_seed(1))
    out = torch.zeros(32)
    reductions(x.data_ptr(), out.data_ptr())
    torch.testing.assert_close(out[0], x.sum())
    assert out[1] == x.max()
    assert out[2] == x[0]
    assert (out[16:] == x[1]).all()


def test_four_sums_at_once_are_the_single_sums_bit_for_bit():
    x = torch.randn(64, generator=torch.Generator().manual_seed(2))
    out = torch.zeros(8)
    four_sums(x.data_ptr(), out.data_ptr())
    assert torch.equal(out[:4], out[4:])
    torch.testing.assert_close(out[:4], x.view(4, 16).sum(1))


def test_arithmetic():
    x, y, z = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
    out = torch.full((5, 16), 9.0)
    arithmetic(x.data_ptr(), y.data_ptr(), z.data_ptr(), out.data_ptr())
    torch.testing.assert_close(out[0].double(), x.double() * y.double() + z.double(), rtol=1e-7, atol=1e-8)
    for got, want in zip(out[1:], (x * y, x + y, x - y, torch.zeros(16))):
        assert torch.equal(got, want)
