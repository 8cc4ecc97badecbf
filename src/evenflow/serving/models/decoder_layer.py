"""A decoder layer: its parts, and how Llama puts them together; see ``layer_orders`` for other ways.

A layer leaves its last addition to the residual stream undone, because most norms add and normalise in one pass over
memory. Legend: T rows, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from evenflow.serving.backends.attention.attention_backend import AttentionBackend
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.models.attention_block import AttentionBlock, AttentionWeights
from evenflow.serving.models.gated_mlp import FeedForward
from evenflow.serving.models.layers import NORMS, Norm
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.parallel.group import Group


@dataclass(slots=True)
class LayerWeights:
    """One decoder layer."""

    norms: dict[str, torch.Tensor]
    """By their names in checkpoints, in the order of ``ModelFamily.norms``."""
    attention: AttentionWeights
    mlp: Any
    """What the family's class of MLP has read."""


class Layer(Protocol):
    """Made from (index, weights, config, shape, group); ``shape`` is the rank's."""

    @property
    def index(self) -> int:
        """Its number, from 0."""
        ...

    @property
    def norms(self) -> Mapping[str, Norm]:
        """Norms that adapters may have weights of their own for, by their names in checkpoints."""
        ...

    def run(
        self, hidden_TH: torch.Tensor, delta_TH: torch.Tensor | None, attention: AttentionBackend, lora: LoRABackend | None
    ) -> torch.Tensor:
        """Advance the residual stream ``hidden_TH``, in place, by one layer, all but the layer's last addition.

        ``delta_TH``: what the layer before left to be added. Returns what this layer leaves: [T, H].
        """
        ...


class LayerParts:
    """What all orders of norms are put together from."""

    def __init__(self, index: int, weights: LayerWeights, config: ModelConfig, shape: ModelShape, group: Group) -> None:
        self.index = index
        make = NORMS[config.family.norm]
        self.norms: dict[str, Norm] = {name: make(weight, config.rms_norm_eps) for name, weight in weights.norms.items()}
        self._attention = AttentionBlock(weights.attention, config, shape, index, group)
        self._mlp: FeedForward = config.family.load("mlp")(weights.mlp, config, index, group)


class DecoderLayer(LayerParts):
    """A norm before attention and one before the MLP (Llama)."""

    def __init__(self, index: int, weights: LayerWeights, config: ModelConfig, shape: ModelShape, group: Group) -> None:
        super().__init__(index, weights, config, shape, group)
        self._before_attention, self._before_mlp = self.norms.values()

    def run(
        self, hidden_TH: torch.Tensor, delta_TH: torch.Tensor | None, attention: AttentionBackend, lora: LoRABackend | None
    ) -> torch.Tensor:
        """See ``Layer``."""
        delta_TH = self._attention(self._before_attention(hidden_TH, delta_TH), attention, lora)
        return self._mlp(self._before_mlp(hidden_TH, delta_TH), lora)


__all__ = ["DecoderLayer", "Layer", "LayerParts", "LayerWeights"]
