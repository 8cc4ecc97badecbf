"""Products with matrices in few bits: one suite for every format, number of rows, width and way to multiply bytes.

Oracle: activations rounded to 127 levels a group as the kernels promise, times the dequantised matrix, in torch.
"""

import pytest
import torch
from torch.nn.functional import linear, pad

from evenflow.serving.backends.devices.quantised_products import QuantisedWeight, pack, packed_of, quantised_matmul
from evenflow.serving.backends.devices.weight_products import prepare_matmul
from evenflow.serving.quant.grouped_matrix import GroupedMatrix, quantise
from evenflow.serving.quant.schemes import INT4, INT4_MIN, INT8

FORMATS = [(INT8, torch.float16), (INT4, torch.float16), (INT4_MIN, torch.float16), (INT4_MIN, torch.float32)]
NAMES = [f"{scheme.name}-{str(dtype).removeprefix('torch.')}" for scheme, dtype in FORMATS]
SHAPES = [(32, 32), (96, 64), (40, 80), (17, 33), (160, 576)]
"""Whole blocks of columns and groups of inputs, and others."""


def matrix(scheme, scale_dtype, outputs, inputs, seed=0):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) / inputs**0.5
    made = quantise(weight, scheme)
    if scale_dtype == made.scales_OG.dtype:
        return made
    minima = None if made.minima_OG is None else made.minima_OG.float() * 1.0001
    return GroupedMatrix(made.codes_OI, made.scales_OG.float() * 1.0001, minima, made.bits)


def rounded(x_TI):
    """Activations as the kernels see them."""
    groups = pad(x_TI.float(), (0, -x_TI.shape[1] % 32)).view(len(x_TI), -1, 32)
    top = groups.abs().amax(-1, keepdim=True)
    codes = torch.where(top > 0, groups * (127 / top), 0.0).round()
    return (codes * (top / 127)).flatten(1)[:, : x_TI.shape[1]]


def check(form, shape, num_rows, dtype, dot=None, bias=False):
    made = matrix(*form, *shape)
    generator = torch.Generator().manual_seed(num_rows)
    bias_O = torch.randn(shape[0], generator=generator).to(dtype) if bias else None
    x_TI = torch.randn(num_rows, shape[1], generator=generator).to(dtype)
    y_TO = quantised_matmul(QuantisedWeight((pack(made),), dtype), bias_O, dot)(x_TI)
    w_OI = made.dequantise()
    expected_TO = linear(rounded(x_TI), w_OI, None if bias_O is None else bias_O.float())
    assert (y_TO.shape, y_TO.dtype, y_TO.is_contiguous()) == (expected_TO.shape, dtype, True)
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-20
    slack = unit * (expected_TO.abs() + linear(x_TI.float().abs(), w_OI.abs())) + 1e-6
    # A code may be rounded the other way where an activation lies half-way between two.
    step = pad(x_TI.float(), (0, -shape[1] % 32)).view(num_rows, -1, 32).abs().amax(-1).amax(-1, keepdim=True) / 127
    assert ((y_TO.float() - expected_TO).abs() <= slack + (0 if dtype == torch.float32 else 0.02 * step)).all()
    exact_TO = linear(x_TI.float(), w_OI, None if bias_O is None else bias_O.float())
    levels = pad(x_TI.float(), (0, -shape[1] % 32)).view(num_rows, -1, 32).abs().amax(-1) / 254
    bound = linear(levels, pad(w_OI.abs(), (0, -shape[1] % 32)).view(shape[0], -1, 32).sum(-1))
    assert ((y_TO.float() - exact_TO).abs() <= bound * 1.001 + slack).all()


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_equal_the_oracle(form, shape):
    for num_rows in (1, 2, 3, 4, 5, 8, 13, 16, 33):
        check(form, shape, num_rows, torch.float32, bias=num_rows % 2 == 1)
    check(form, shape, 7, torch.bfloat16, bias=True)


@pytest.mark.parametrize("dot", ["words", "plain"])
@pytest.mark.parametrize("form", [FORMATS[0], FORMATS[2]], ids=[NAMES[0], NAMES[2]])
def test_every_way_to_multiply_bytes_gives_the_same(form, dot):
    """Where a processor has no instruction for it. 16-bit ways would overflow with codes of 255 and activations of 127."""
    check(form, (64, 96), 11, torch.float32, dot)
    made = matrix(form[0], form[1], 64, 96)
    extreme = GroupedMatrix(torch.full_like(made.codes_OI, (1 << made.bits) - 1), made.scales_OG, made.minima_OG, made.bits)
    weight, x_TI = QuantisedWeight((pack(extreme),), torch.float32), torch.ones(3, 96)
    assert torch.equal(quantised_matmul(weight, None, dot)(x_TI), quantised_matmul(weight, None)(x_TI))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_does_not_depend_on_other_rows_nor_on_threads(num_threads):
    made = matrix(INT4, torch.float16, 200, 96)
    matmul = quantised_matmul(QuantisedWeight((pack(made),), torch.bfloat16), None)
    x_TI = torch.randn(40, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    before = torch.get_num_threads()
    one_by_one_TO = torch.cat([matmul(x_TI[i : i + 1]) for i in range(40)])
    torch.set_num_threads(num_threads)
    try:
        assert torch.equal(matmul(x_TI), one_by_one_TO)
    finally:
        torch.set_num_threads(before)


def test_what_is_no_number_stays_visible():
    made = matrix(INT8, torch.float16, 32, 64)
    matmul = quantised_matmul(QuantisedWeight((pack(made),), torch.float32), None)
    for bad in (float("nan"), float("inf")):
        x_TI = torch.ones(2, 64)
        x_TI[1, 40] = bad
        y_TO = matmul(x_TI)
        assert torch.isfinite(y_TO[0]).all()
        assert y_TO[1].isnan().all()
    assert torch.equal(matmul(torch.zeros(1, 64)), torch.zeros(1, 32))


def test_parts_of_several_formats_are_one_matrix():
    parts = [matrix(INT8, torch.float16, 48, 64, 1), matrix(INT4_MIN, torch.float16, 40, 64, 2)]
    weight = QuantisedWeight(tuple(pack(part) for part in parts), torch.float32)
    bias_O = torch.arange(88.0)
    x_TI = torch.randn(5, 64)
    expected_TO = torch.cat([quantised_matmul(QuantisedWeight((pack(p),), torch.float32), None)(x_TI) for p in parts], dim=1)
    assert torch.equal(prepare_matmul(weight, bias_O)(x_TI), expected_TO + bias_O)
    assert weight.shape == (88, 64)
    assert torch.equal(weight.dequantise(torch.float32), torch.cat([part.dequantise() for part in parts]))


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packing_loses_nothing(form, shape):
    made = matrix(*form, *shape)
    packed = pack(made)
    assert packed.packed.data_ptr() % 64 == 0
    again = packed_of(packed.meta(), packed.packed.view(-1)).unpack()
    assert torch.equal(again.codes_OI, made.codes_OI)
    assert torch.equal(again.scales_OG, made.scales_OG)
    assert made.minima_OG is None or torch.equal(again.minima_OG, made.minima_OG)
    rows_T = torch.tensor([shape[0] - 1, 0, 3, 3])
    weight = QuantisedWeight((packed,), torch.float32)
    assert torch.equal(weight.index_select(0, rows_T), made.dequantise()[rows_T])
