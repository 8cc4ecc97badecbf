"""Attention of a layer: q, k and v in one product, perhaps a norm of theirs, attention, and o.

Legend: T rows, H hidden, C fused qkv width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evenflow.serving.backends.attention.attention_backend import AttentionBackend
from evenflow.serving.backends.devices.weight_products import Weight
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.qk_norms import qk_norm, qk_norm_tensors, read_qk_norms
from evenflow.serving.models.rotated_pairs import PairedColumns
from evenflow.serving.models.weight_source import WeightSource
from evenflow.serving.parallel.group import Group
from evenflow.serving.parallel.linear import ColumnLinear, RowLinear

_QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(slots=True)
class AttentionWeights:
    """qkv is [q | k | v], rows one after another."""

    qkv: Weight
    qkv_bias: torch.Tensor | None
    o: Weight
    o_bias: torch.Tensor | None
    qk_norms: tuple[torch.Tensor, torch.Tensor] | None = None


class AttentionBlock:
    """``shape``: of the rank."""

    def __init__(self, weights: AttentionWeights, config: ModelConfig, shape: ModelShape, layer: int, group: Group) -> None:
        self.layer = layer
        self._qkv = ColumnLinear(weights.qkv, weights.qkv_bias, layer, "qkv")
        self._norm = qk_norm(weights.qk_norms, config, shape, group)
        rope, family = config.layers[layer].rope, config.family
        self._pairs: PairedColumns | None = None
        if rope is not None and (family.rotates_neighbours or rope.rotary_dim(shape.head_dim) < shape.head_dim):
            device = torch.device(weights.o.device) if isinstance(weights.o, torch.Tensor) else torch.device("cpu")
            self._pairs = PairedColumns(shape, rope.rotary_dim(shape.head_dim), family.rotates_neighbours, device)
        self._o = RowLinear(weights.o, weights.o_bias, layer, "o", group)

    def __call__(self, x_TH: torch.Tensor, attention: AttentionBackend, lora: LoRABackend | None) -> torch.Tensor:
        """A new [T, H]."""
        qkv_TC = self._qkv(x_TH, lora)
        if self._norm is not None:
            self._norm(qkv_TC)
        if self._pairs is not None:
            qkv_TC = self._pairs(qkv_TC)
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
        return found | qk_norm_tensors(config)

    @staticmethod
    def read(source: WeightSource, config: ModelConfig, layer: int) -> AttentionWeights:
        """The rank's part of these tensors."""
        prefix = f"model.layers.{layer}.self_attn."
        qkv, qkv_bias = source.columns_of(prefix, _QKV, has_bias=config.has_qkv_bias)
        o, o_bias = source.rows_of(prefix, "o_proj", has_bias=config.has_o_bias)
        return AttentionWeights(qkv, qkv_bias, o, o_bias, read_qk_norms(source, config, prefix))


__all__ = ["AttentionBlock", "AttentionWeights"]
