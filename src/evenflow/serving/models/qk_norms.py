"""Norms of queries and keys before rope, in place inside a fused qkv: of every head by itself, or of all heads together.

Legend: T rows, C fused qkv width, D head_dim, Q and K width of this rank's queries and of its keys.
"""

from __future__ import annotations

from typing import Protocol

import torch

from evenflow.serving.core.shape import ModelShape
from evenflow.serving.models.layers import HeadNorm, norm_columns
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.weight_source import WeightSource
from evenflow.serving.parallel.group import Group


class QKNorm(Protocol):
    """Overwrites the query and key columns of ``qkv_TC`` (contiguous)."""

    def __call__(self, qkv_TC: torch.Tensor) -> None: ...


class WholeNorm:
    """RMS norm over all queries of a token row, and over all its keys, those of the other ranks included (OLMo 2).

    ``num_kv_heads``: of the whole model. Where there are fewer of them than ranks, several ranks hold the same one.
    """

    def __init__(
        self, q_weight_Q: torch.Tensor, k_weight_K: torch.Tensor, num_kv_heads: int, head_dim: int, eps: float, group: Group
    ) -> None:
        self._q_weight_Q, self._k_weight_K = q_weight_Q.contiguous(), k_weight_K.contiguous()
        self._eps, self._group = eps, group
        self._q, self._k = q_weight_Q.shape[0], k_weight_K.shape[0]
        num_copies = max(1, group.world_size // num_kv_heads)
        per_element = [1 / (self._q * group.world_size), 1 / (num_kv_heads * head_dim * num_copies)]
        self._per_element_2 = torch.tensor(per_element, device=q_weight_Q.device)

    def __call__(self, qkv_TC: torch.Tensor) -> None:
        """See ``QKNorm``."""
        if self._group.world_size == 1:
            norm_columns(qkv_TC, 0, self._q_weight_Q, self._eps)
            norm_columns(qkv_TC, self._q, self._k_weight_K, self._eps)
            return
        q_TQ, k_TK = qkv_TC[:, : self._q], qkv_TC[:, self._q : self._q + self._k]
        q_wide_TQ, k_wide_TK = q_TQ.float(), k_TK.float()
        squares_T2 = torch.stack([q_wide_TQ.square().sum(1), k_wide_TK.square().sum(1)], dim=1)
        squares_T2 = self._group.all_reduce(squares_T2, "qk_norm")
        scales_T2 = (squares_T2 * self._per_element_2 + self._eps).rsqrt_()
        q_TQ.copy_(q_wide_TQ.mul_(scales_T2[:, :1]).mul_(self._q_weight_Q))
        k_TK.copy_(k_wide_TK.mul_(scales_T2[:, 1:]).mul_(self._k_weight_K))


def qk_norm_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names, inside the layer, and shapes of the norms' weights."""
    kind, shape = config.family.qk_norm, config.shape
    if kind == "none":
        return {}
    widths = (shape.head_dim, shape.head_dim) if kind == "heads" else (shape.q_width, shape.kv_width)
    return {f"self_attn.{which}_norm.weight": (width,) for which, width in zip("qk", widths)}


def read_qk_norms(source: WeightSource, config: ModelConfig, prefix: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The rank's part of these weights. ``prefix``: of the block that has them, with a dot at its end."""
    kind = config.family.qk_norm
    if kind == "none":
        return None
    if kind == "heads":
        return source.tensor(f"{prefix}q_norm.weight"), source.tensor(f"{prefix}k_norm.weight")
    q, k = (source.part(f"{prefix}{which}_norm.weight", source.shard.outputs(f"{which}_proj")) for which in "qk")
    return q, k


def qk_norm(
    weights: tuple[torch.Tensor, torch.Tensor] | None, config: ModelConfig, shape: ModelShape, group: Group
) -> QKNorm | None:
    """What computes it; None: nothing. ``shape``: of the rank."""
    if weights is None:
        return None
    if config.family.norm == "rms 1 + w":
        weights = 1 + weights[0].float(), 1 + weights[1].float()
    if config.family.qk_norm == "heads":
        return HeadNorm(*weights, shape.num_heads, shape.num_kv_heads, config.rms_norm_eps)
    return WholeNorm(*weights, config.shape.num_kv_heads, shape.head_dim, config.rms_norm_eps, group)


__all__ = ["QKNorm", "WholeNorm", "qk_norm", "qk_norm_tensors", "read_qk_norms"]
