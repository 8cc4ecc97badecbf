"""Lines of elements and their dot products, against torch in fp64; with and without the instruction for bf16."""

from __future__ import annotations

import numba
import pytest
import torch

from evenflow.serving.kernels import simd, simd_lines

ELEMENTS = {"bf16": (torch.bfloat16, simd.element_of(2)), "fp32": (torch.float32, simd.element_of(4))}


@numba.njit
def dot(element, x, y, target, num_bytes):
    sums = simd.zeros()
    for i in range(0, num_bytes, 64):
        sums = simd_lines.dot_line(simd_lines.load_line(element, x + i), simd_lines.load_line(element, y + i), sums)
    simd.store_one_f32(target, simd.lane_sum(sums))


@numba.njit
def dot_widened(element, x, y, target, num_bytes):
    sums = simd.zeros()
    for i in range(0, num_bytes, 64):
        x_line, y_line = simd_lines.load_line(element, x + i), simd_lines.load_line(element, y + i)
        sums = simd_lines.dot_line_widened(x_line, y_line, sums)
    simd.store_one_f32(target, simd.lane_sum(sums))


@numba.njit
def copy_line(element, source, target):
    simd_lines.store_line(target, simd_lines.load_line(element, source))


@numba.njit
def scattered_sums(source, target, apart):
    a, b = simd.load_f32(source), simd.load_f32(source + 64)
    c, d = simd.load_f32(source + 128), simd.load_f32(source + 192)
    simd_lines.scatter_lane_sums(target, apart, a, b, c, d)


@pytest.mark.parametrize(
    ("name", "function"), [("bf16", dot), ("bf16", dot_widened), ("fp32", dot)], ids=["bf16", "bf16 widened", "fp32"]
)
def test_a_dot_product_of_lines_has_exact_products_and_fp32_sums(name, function):
    dtype, element = ELEMENTS[name]
    x, y = torch.randn(2, 1024, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.full((1,), 9.0)
    function(element, x.data_ptr(), y.data_ptr(), out.data_ptr(), x.nbytes)
    products = x.double() * y.double()
    # A bf16 sum would be off by a thousand times as much.
    assert (out.double() - products.sum()).abs() < 1e-6 * products.abs().sum()


@pytest.mark.parametrize("function", [dot, dot_widened])
def test_every_element_of_a_line_of_bf16_meets_its_own_partner(function):
    element = ELEMENTS["bf16"][1]
    for i in range(32):
        x, y = torch.zeros(32, dtype=torch.bfloat16), torch.arange(1, 33).to(torch.bfloat16)
        x[i] = 2
        out = torch.zeros(1)
        function(element, x.data_ptr(), y.data_ptr(), out.data_ptr(), 64)
        assert out.item() == 2 * (i + 1)


@pytest.mark.parametrize("name", ELEMENTS)
def test_a_line_is_copied_as_it_is_from_and_to_any_element(name):
    dtype, element = ELEMENTS[name]
    source = torch.randint(-128, 128, (192,), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    target = torch.zeros(192, dtype=torch.int8)
    first = dtype.itemsize
    copy_line(element, source.data_ptr() + first, target.data_ptr() + 3 * first)
    assert torch.equal(target[3 * first : 3 * first + 64], source[first : first + 64])
    assert not target[: 3 * first].any()
    assert not target[3 * first + 64 :].any()


def test_scattered_sums_are_the_single_sums_bit_for_bit():
    x = torch.randn(64, generator=torch.Generator().manual_seed(2))
    out, single = torch.full((40,), 9.0), torch.zeros(1)
    scattered_sums(x.data_ptr(), out.data_ptr(), 4 * 11)
    for i in range(4):
        lane_sum(x.data_ptr() + 64 * i, single.data_ptr())
        assert out[11 * i] == single[0]
    assert (out == 9).sum() == 36


@numba.njit
def lane_sum(source, target):
    simd.store_one_f32(target, simd.lane_sum(simd.load_f32(source)))
