"""LoRA of one adapter and module in plain torch, any device and dtype: the oracle of the other kernels.

Legend: T rows, I input width, O output width, R lora_rank.
"""

from __future__ import annotations

import torch


def add_lora(y_TO: torch.Tensor, x_TI: torch.Tensor, a_RI: torch.Tensor, b_RO: torch.Tensor) -> torch.Tensor:
    """Return y plus the adapter's delta, computed in fp32 and rounded once.

    Semantics: out[t, o] = y[t, o] + sum_r b[r, o] (sum_i a[r, i] x[t, i]).
    """
    return (y_TO.float() + (x_TI.float() @ a_RI.float().T) @ b_RO.float()).to(y_TO.dtype)
