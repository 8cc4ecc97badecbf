"""Packed products: right for every number of rows, and compiled for few of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from evenflow.serving.backends.devices.weight_products import filled_rows, prepare_matmul


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_of_every_number_of_rows(dtype, has_bias):
    generator = torch.Generator().manual_seed(0)
    weight_OI, bias_O = torch.randn(48, 32, generator=generator).to(dtype), torch.randn(48, generator=generator).to(dtype)
    matmul = prepare_matmul(weight_OI.clone(), bias_O if has_bias else None)
    x_TI = torch.randn(70, 32, generator=generator).to(dtype)
    for num_rows in range(71):
        y_TO = matmul(x_TI[:num_rows])
        expected_TO = linear(x_TI[:num_rows].float(), weight_OI.float(), bias_O.float() if has_bias else None)
        assert y_TO.shape == expected_TO.shape
        assert y_TO.is_contiguous()
        assert y_TO.dtype == dtype
        error = 1e-4 if dtype == torch.float32 else 0.01 * expected_TO.abs().max().item() if num_rows else 0.0
        assert torch.allclose(y_TO.float(), expected_TO, rtol=0, atol=error)


def test_steps_of_any_size_need_few_products():
    """Each costs a compilation and 0.7 MB for as long as the engine lives."""
    assert all(filled_rows(n) == n for n in range(17))
    assert all(n <= filled_rows(n) < n + 8 for n in range(2000))
    assert len({filled_rows(n) for n in range(1, 513)}) == 78
