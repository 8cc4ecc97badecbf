"""A weight matrix in the form its device multiplies fastest.

On the CPU oneDNN's own blocked layout, which decoding reads 1.5 to 2 times faster than the plain one
(benchmarks/results/weight_layout--*.json), and the plain copy is dropped. Elsewhere the plain tensor.
Knows neither layers nor ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear

Matmul = Callable[[torch.Tensor], torch.Tensor]
"""x_TI -> x_TI W_OI^T + bias_O, a new contiguous [T, O]."""


def prepare_matmul(weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> Matmul:
    """Pack ``weight_OI`` for its device and return the product with it. The caller may drop ``weight_OI``."""
    if weight_OI.device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
        multiply = torch.ops.mkldnn._linear_pointwise.default

        def packed_matmul(x_TI: torch.Tensor) -> torch.Tensor:
            return multiply(x_TI, packed, bias_O, "none", [], "")

        return packed_matmul

    def plain_matmul(x_TI: torch.Tensor) -> torch.Tensor:
        return linear(x_TI, weight_OI, bias_O)

    return plain_matmul


__all__ = ["Matmul", "prepare_matmul"]
