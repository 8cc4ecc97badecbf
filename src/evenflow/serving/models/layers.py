"""The small functions of a decoder layer: norms and the gated activation.

Legend: T rows, H hidden, I intermediate width, C fused qkv width, D head_dim.
"""

from __future__ import annotations

import torch
from torch.nn.functional import rms_norm, silu


class RMSNorm:
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axis, computed in fp32."""

    __slots__ = ("_eps", "_shape", "_weight_H")

    def __init__(self, weight_H: torch.Tensor, eps: float) -> None:
        self._weight_H, self._eps, self._shape = weight_H, eps, tuple(weight_H.shape)

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        """A new tensor of x's shape and dtype."""
        return rms_norm(x_TH, self._shape, self._weight_H, self._eps)


class HeadNorm:
    """RMS norm of every query head and every key head inside a fused qkv, in place (Qwen3)."""

    def __init__(
        self, q_weight_D: torch.Tensor, k_weight_D: torch.Tensor, num_heads: int, num_kv_heads: int, eps: float
    ) -> None:
        self._q_norm, self._k_norm = RMSNorm(q_weight_D, eps), RMSNorm(k_weight_D, eps)
        self._num_heads, self._num_kv_heads, self._head_dim = num_heads, num_kv_heads, q_weight_D.shape[0]

    def __call__(self, qkv_TC: torch.Tensor) -> None:
        """Overwrites the query and key columns of ``qkv_TC``."""
        heads_TND = qkv_TC.view(qkv_TC.shape[0], -1, self._head_dim)
        q_TND = heads_TND[:, : self._num_heads]
        k_TND = heads_TND[:, self._num_heads : self._num_heads + self._num_kv_heads]
        q_TND.copy_(self._q_norm(q_TND))
        k_TND.copy_(self._k_norm(k_TND))


def silu_and_multiply(gate_up_T2I: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for a fused [gate | up]: a new [T, I]."""
    gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
    return silu(gate_TI).mul_(up_TI)


__all__ = ["HeadNorm", "RMSNorm", "silu_and_multiply"]
