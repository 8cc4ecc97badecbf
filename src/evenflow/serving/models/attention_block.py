"""Attention of a layer between its two linears: q, k and v in one product, perhaps a norm of theirs, attention, and o.

Legend: T rows, H hidden, C fused qkv width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evenflow.serving.backends.attention.attention_backend import AttentionBackend
from evenflow.serving.backends.devices.weight_products import Weight
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.models.layers import HeadNorm
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.weight_source import WeightSource
from evenflow.serving.parallel.group import Group
from evenflow.serving.parallel.linear import ColumnLinear, RowLinear

_QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(slots=True)
class AttentionWeights:
    """qkv is [q | k | v], rows one after another."""

    qkv: Weight
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: Weight
    o_bias: torch.Tensor | None


class AttentionBlock:
    """``shape``: of the rank."""

    def __init__(self, weights: AttentionWeights, config: ModelConfig, shape: ModelShape, layer: int, group: Group) -> None:
        self.layer = layer
        self._qkv = ColumnLinear(weights.qkv, weights.qkv_bias, layer, "qkv")
        self._norm: HeadNorm | None = None
        if weights.q_norm is not None and weights.k_norm is not None:
            self._norm = HeadNorm(weights.q_norm, weights.k_norm, shape.num_heads, shape.num_kv_heads, config.rms_norm_eps)
        self._o = RowLinear(weights.o, weights.o_bias, layer, "o", group)

    def __call__(self, x_TH: torch.Tensor, attention: AttentionBackend, lora: LoRABackend | None) -> torch.Tensor:
        """A new [T, H]."""
        qkv_TC = self._qkv(x_TH, lora)
        if self._norm is not None:
            self._norm(qkv_TC)
        return self._o(attention.run(self.layer, qkv_TC), lora)

    @staticmethod
    def tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Names, inside the layer, and shapes of its tensors."""
        found: dict[str, tuple[int, ...]] = {}
        for module in (*_QKV, "o_proj"):
            inputs, outputs = config.shape.module_widths(module)
            found[f"self_attn.{module}.weight"] = (outputs, inputs)
            if config.has_o_bias if module == "o_proj" else config.has_qkv_bias:
                found[f"self_attn.{module}.bias"] = (outputs,)
        if config.family.qk_norm == "heads":
            found |= {f"self_attn.{which}_norm.weight": (config.shape.head_dim,) for which in "qk"}
        return found

    @staticmethod
    def read(source: WeightSource, config: ModelConfig, layer: int) -> AttentionWeights:
        """The rank's part of these tensors."""
        prefix = f"model.layers.{layer}.self_attn."
        qkv, qkv_bias = source.columns_of(prefix, _QKV, has_bias=config.has_qkv_bias)
        norms: list[torch.Tensor | None] = [None, None]
        if config.family.qk_norm == "heads":
            norms = [source.tensor(f"{prefix}{which}_norm.weight") for which in "qk"]
        o, o_bias = source.rows_of(prefix, "o_proj", has_bias=config.has_o_bias)
        return AttentionWeights(qkv, qkv_bias, norms[0], norms[1], o, o_bias)


__all__ = ["AttentionBlock", "AttentionWeights"]
