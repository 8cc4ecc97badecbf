"""Decoder layers whose norms stand elsewhere than Llama's, or that weigh what they add. One class for each order.

Each takes its norms in the order of ``ModelFamily.norms``. Legend: T rows, H hidden.
"""

from __future__ import annotations

import torch

from evenflow.serving.backends.attention.attention_backend import AttentionBackend
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.models.decoder_layer import DecoderLayer, LayerParts, LayerWeights
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.parallel.group import Group


class WeighedLayer(DecoderLayer):
    """Norms as Llama has them; what attention and MLP add is multiplied by ``Traits.residual_multiplier`` (Granite)."""

    def __init__(self, index: int, weights: LayerWeights, config: ModelConfig, shape: ModelShape, group: Group) -> None:
        super().__init__(index, weights, config, shape, group)
        self._multiplier = config.traits.residual_multiplier

    def run(
        self, hidden_TH: torch.Tensor, delta_TH: torch.Tensor | None, attention: AttentionBackend, lora: LoRABackend | None
    ) -> torch.Tensor:
        """See ``Layer``."""
        delta_TH = self._attention(self._before_attention(hidden_TH, delta_TH), attention, lora).mul_(self._multiplier)
        return self._mlp(self._before_mlp(hidden_TH, delta_TH), lora).mul_(self._multiplier)


class NormsAfterLayer(LayerParts):
    """A norm after attention and one after the MLP, on what they add (OLMo 2)."""

    def __init__(self, index: int, weights: LayerWeights, config: ModelConfig, shape: ModelShape, group: Group) -> None:
        super().__init__(index, weights, config, shape, group)
        self._after_attention, self._after_mlp = self.norms.values()

    def run(
        self, hidden_TH: torch.Tensor, delta_TH: torch.Tensor | None, attention: AttentionBackend, lora: LoRABackend | None
    ) -> torch.Tensor:
        """See ``Layer``."""
        if delta_TH is not None:
            hidden_TH.add_(delta_TH)
        hidden_TH.add_(self._after_attention(self._attention(hidden_TH, attention, lora)))
        return self._after_mlp(self._mlp(hidden_TH, lora))


class NormsAroundLayer(LayerParts):
    """A norm before and one after attention, and before and after the MLP (Gemma 2, GLM-4)."""

    def __init__(self, index: int, weights: LayerWeights, config: ModelConfig, shape: ModelShape, group: Group) -> None:
        super().__init__(index, weights, config, shape, group)
        self._before_attention, self._after_attention, self._before_mlp, self._after_mlp = self.norms.values()

    def run(
        self, hidden_TH: torch.Tensor, delta_TH: torch.Tensor | None, attention: AttentionBackend, lora: LoRABackend | None
    ) -> torch.Tensor:
        """See ``Layer``."""
        delta_TH = self._attention(self._before_attention(hidden_TH, delta_TH), attention, lora)
        delta_TH = self._mlp(self._before_mlp(hidden_TH, self._after_attention(delta_TH)), lora)
        return self._after_mlp(delta_TH)


class WeighedNormsAroundLayer(NormsAroundLayer):
    """Norms around attention and MLP, and what they add multiplied by ``Traits.residual_multiplier`` (HyperCLOVA X)."""

    def __init__(self, index: int, weights: LayerWeights, config: ModelConfig, shape: ModelShape, group: Group) -> None:
        super().__init__(index, weights, config, shape, group)
        self._multiplier = config.traits.residual_multiplier

    def run(
        self, hidden_TH: torch.Tensor, delta_TH: torch.Tensor | None, attention: AttentionBackend, lora: LoRABackend | None
    ) -> torch.Tensor:
        """See ``Layer``."""
        delta_TH = self._attention(self._before_attention(hidden_TH, delta_TH), attention, lora)
        delta_TH = self._after_attention(delta_TH).mul_(self._multiplier)
        delta_TH = self._mlp(self._before_mlp(hidden_TH, delta_TH), lora)
        return self._after_mlp(delta_TH).mul_(self._multiplier)


class ParallelLayer(LayerParts):
    """Attention and MLP beside each other, behind one norm (Cohere)."""

    def __init__(self, index: int, weights: LayerWeights, config: ModelConfig, shape: ModelShape, group: Group) -> None:
        super().__init__(index, weights, config, shape, group)
        (self._before_both,) = self.norms.values()

    def run(
        self, hidden_TH: torch.Tensor, delta_TH: torch.Tensor | None, attention: AttentionBackend, lora: LoRABackend | None
    ) -> torch.Tensor:
        """See ``Layer``."""
        x_TH = self._before_both(hidden_TH, delta_TH)
        return self._attention(x_TH, attention, lora).add_(self._mlp(x_TH, lora))


__all__ = ["NormsAfterLayer", "NormsAroundLayer", "ParallelLayer", "WeighedLayer", "WeighedNormsAroundLayer"]
