"""A weight matrix in the form its device multiplies fastest.

On the CPU oneDNN's own blocked layout, which decoding reads 1.5 to 2 times faster than the plain one
(benchmarks/results/weight_layout--*.json), and the plain copy is dropped. Elsewhere the plain tensor.
oneDNN compiles a product for every number of rows it meets and keeps it, 0.7 MB each: so rows are filled up.
A matrix in few bits brings its own product. Knows neither layers nor ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear, pad

from evenflow.serving.backends.devices.quantised_products import QuantisedWeight, quantised_matmul

Weight = torch.Tensor | QuantisedWeight
"""A matrix [O, I]: a tensor of the dtype that is computed in, or codes of few bits."""

Matmul = Callable[[torch.Tensor], torch.Tensor]
"""x_TI -> x_TI W_OI^T + bias_O, a new contiguous [T, O]."""

_EXACT_ROWS, _ROW_STEP = 16, 8
"""Products with up to so many rows are computed with exactly these; larger ones are filled up to a multiple of 8 rows."""


def prepare_matmul(weight_OI: Weight, bias_O: torch.Tensor | None = None) -> Matmul:
    """Pack ``weight_OI`` for its device and return the product with it. The caller may drop ``weight_OI``."""
    if isinstance(weight_OI, QuantisedWeight):
        return quantised_matmul(weight_OI, bias_O)
    if weight_OI.device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
        multiply = torch.ops.mkldnn._linear_pointwise.default

        def packed_matmul(x_TI: torch.Tensor) -> torch.Tensor:
            num_rows = len(x_TI)
            num_spare = filled_rows(num_rows) - num_rows
            if num_spare:
                return multiply(pad(x_TI, (0, 0, 0, num_spare)), packed, bias_O, "none", [], "")[:num_rows]
            return multiply(x_TI, packed, bias_O, "none", [], "")

        return packed_matmul

    def plain_matmul(x_TI: torch.Tensor) -> torch.Tensor:
        return linear(x_TI, weight_OI, bias_O)

    return plain_matmul


def filled_rows(num_rows: int) -> int:
    """How many rows a product of ``num_rows`` is computed with, where products are compiled for a number of rows."""
    return num_rows if num_rows <= _EXACT_ROWS else -(-num_rows // _ROW_STEP) * _ROW_STEP


__all__ = ["Matmul", "Weight", "filled_rows", "prepare_matmul"]
