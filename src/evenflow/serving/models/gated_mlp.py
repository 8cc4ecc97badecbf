"""What follows attention in a layer: the seam, and the gated MLP that most families have there.

Legend: T rows, H hidden, I intermediate width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from evenflow.serving.backends.devices.weight_products import Weight
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.models.layers import gate_rule
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.weight_source import WeightSource
from evenflow.serving.parallel.group import Group
from evenflow.serving.parallel.linear import ColumnLinear, RowLinear


class FeedForward(Protocol):
    """Made from (weights, config, layer, group), where ``weights`` is what its own ``read`` returned."""

    def __call__(self, x_TH: torch.Tensor, lora: LoRABackend | None) -> torch.Tensor:
        """A new [T, H], equal on all ranks."""
        ...

    @staticmethod
    def tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Names, inside the layer, and shapes of its tensors."""
        ...

    @staticmethod
    def read(source: WeightSource, config: ModelConfig, layer: int) -> Any:
        """The rank's part of these tensors, in a form that ``merge`` and tests know by its fields."""
        ...


@dataclass(slots=True)
class GatedMLPWeights:
    """gate_up is [gate | up], rows one after another."""

    gate_up: Weight
    gate_up_bias: torch.Tensor | None
    down: Weight
    down_bias: torch.Tensor | None


class GatedMLP:
    """y = down(activation(gate(x)) * up(x)); a FeedForward."""

    def __init__(self, weights: GatedMLPWeights, config: ModelConfig, layer: int, group: Group) -> None:
        self._gate_up = ColumnLinear(weights.gate_up, weights.gate_up_bias, layer, "gate_up")
        self._gated = gate_rule(config.activation)
        self._down = RowLinear(weights.down, weights.down_bias, layer, "down", group)

    def __call__(self, x_TH: torch.Tensor, lora: LoRABackend | None) -> torch.Tensor:
        """See ``FeedForward``."""
        return self._down(self._gated(self._gate_up(x_TH, lora)), lora)

    @staticmethod
    def tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """See ``FeedForward``."""
        found: dict[str, tuple[int, ...]] = {}
        for module in ("gate_proj", "up_proj", "down_proj"):
            inputs, outputs = config.shape.module_widths(module)
            found[f"mlp.{module}.weight"] = (outputs, inputs)
            if config.has_mlp_bias:
                found[f"mlp.{module}.bias"] = (outputs,)
        return found

    @staticmethod
    def read(source: WeightSource, config: ModelConfig, layer: int) -> GatedMLPWeights:
        """See ``FeedForward``."""
        prefix = f"model.layers.{layer}.mlp."
        gate_up, gate_up_bias = source.columns_of(prefix, ("gate_proj", "up_proj"), has_bias=config.has_mlp_bias)
        down, down_bias = source.rows_of(prefix, "down_proj", has_bias=config.has_mlp_bias)
        return GatedMLPWeights(gate_up, gate_up_bias, down, down_bias)


__all__ = ["FeedForward", "GatedMLP", "GatedMLPWeights"]
