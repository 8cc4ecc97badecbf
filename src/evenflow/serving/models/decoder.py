"""The decoder: embedding, layers, last norm, head. The family says which class each layer is of.

It knows batches of rows; not requests, pages or adapters: attention and LoRA are the injected
backends' business. Legend: T rows, L rows whose logits are wanted, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from evenflow.serving.backends.attention.attention_backend import AttentionBackend
from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.devices.weight_products import Weight
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.backends.lora.side_weights import SidedLoRA
from evenflow.serving.core.shard import Shard
from evenflow.serving.models.decoder_layer import Layer
from evenflow.serving.models.layers import NORMS, Norm
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.weights import ModelWeights
from evenflow.serving.parallel.group import Group, OneRank
from evenflow.serving.parallel.vocabulary import BoundedHead, Embedding, OutputHead, ScaledEmbedding


class Decoder:
    """A decoder ready to run once ``bind`` has given it its backends. Takes over (and drops) ``weights``.

    With a ``shard`` of the config's shape it is one rank's part, and ``group`` is the ranks it works with.
    """

    def __init__(
        self, config: ModelConfig, weights: ModelWeights, group: Group | None = None, shard: Shard | None = None
    ) -> None:
        group = group or OneRank()
        shape = config.shape if shard is None else shard.shape
        assert group.world_size == (1 if shard is None else shard.world_size)
        self.config = config
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        self._embedding = _embedding(config, weights.embedding, 0 if shard is None else shard.vocabulary().start, group)
        self._layers: list[Layer] = []
        make = config.family.load("layer")
        while weights.layers:
            self._layers.append(make(len(self._layers), weights.layers.popleft(), config, shape, group))
        self._norm: Norm = NORMS[config.family.norm](weights.norm, config.rms_norm_eps)
        self._head = _head(config, weights.head, group)
        self._attention: AttentionBackend | None = None
        self._lora: LoRABackend | None = None

    def bind(self, attention: AttentionBackend, lora: LoRABackend | None = None) -> None:
        """Use these backends from now on. Without a LoRA backend the base model alone is served."""
        self._attention, self._lora = attention, lora
        side = lora.side if isinstance(lora, SidedLoRA) else None
        self._embedding.side = self._head.side = side
        for layer, name, norm in self._norms():
            norm.own = None if side is None else partial(side.norm, layer, name)

    def _norms(self) -> Iterator[tuple[int, str, Norm]]:
        """Norms that adapters may have their own weight for: (layer, its name in checkpoints, norm); layer -1 is the last."""
        for layer in self._layers:
            for name, norm in layer.norms.items():
                yield layer.index, name, norm
        yield -1, "norm", self._norm

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Run the step's rows through all layers: hidden states [L, H] of ``batch.logits_rows``, after the last norm.

        The backends' ``plan(batch)`` must have been called. Writes K and V of the rows into the arena.
        """
        attention, lora = self._attention, self._lora
        assert attention is not None, "bind() comes before forward()"
        hidden_TH = self._embedding(batch.token_ids_T)
        delta_TH: torch.Tensor | None = None
        for layer in self._layers:
            delta_TH = layer.run(hidden_TH, delta_TH, attention, lora)
        assert delta_TH is not None
        rows_L = batch.logits_rows
        return self._norm(hidden_TH.index_select(0, rows_L), delta_TH.index_select(0, rows_L))

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits [L, V] of ``batch.logits_rows``."""
        return self.logits(self.forward(batch))

    @torch.inference_mode()
    def logits(self, hidden_LH: torch.Tensor) -> torch.Tensor:
        """[L, V] in the model's dtype."""
        return self._head(hidden_LH)


def _embedding(config: ModelConfig, weight_PH: Weight, first: int, group: Group) -> Embedding:
    multiplier = config.traits.embedding_multiplier
    if multiplier == 1:
        return Embedding(weight_PH, first, group)
    if config.traits.is_embedding_multiplier_rounded:
        multiplier = float(torch.tensor(multiplier, dtype=weight_PH.dtype))
    return ScaledEmbedding(weight_PH, multiplier, first, group)


def _head(config: ModelConfig, weight_PH: Weight, group: Group) -> OutputHead:
    multiplier, softcap = config.traits.logits_multiplier, config.traits.logits_softcap
    if multiplier == 1 and softcap is None:
        return OutputHead(weight_PH, config.shape.vocab_size, group)
    return BoundedHead(weight_PH, config.shape.vocab_size, group, multiplier=multiplier, softcap=softcap)


__all__ = ["Decoder"]
