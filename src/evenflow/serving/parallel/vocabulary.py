"""Token embedding and output head, whole or divided over the ranks by vocabulary.

Both are exact: a row of the embedding comes from one rank and zeros from the others, a logit from one rank alone.
Legend: T rows, L rows whose logits are wanted, H hidden, V vocabulary, P this rank's part of it.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from evenflow.serving.backends.devices.weight_products import Weight, prepare_matmul
from evenflow.serving.backends.lora.side_weights import SideWeights
from evenflow.serving.parallel.group import Group, OneRank


class Embedding:
    """Rows of a table by token id. ``first``: token id of this rank's row 0."""

    def __init__(self, weight_PH: Weight, first: int = 0, group: Group | None = None) -> None:
        self._weight_PH = weight_PH
        self._first = first
        self._group = group or OneRank()
        self.side: SideWeights | None = None
        """Adapters' own embeddings."""

    def __call__(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """A new [T, H]."""
        if self.side is None or not self.side.is_active:
            return self._rows(token_ids_T)
        hidden_TH = self._rows(self.side.base_ids(token_ids_T))
        self.side.embed(token_ids_T, hidden_TH)
        return hidden_TH

    def _rows(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        if self._group.world_size == 1:
            return self._weight_PH.index_select(0, token_ids_T)
        num_held, width = self._weight_PH.shape
        rows_T = token_ids_T - self._first
        is_elsewhere_T = (rows_T < 0) | (rows_T >= num_held)
        if num_held:
            hidden_TH = self._weight_PH.index_select(0, rows_T.clamp(0, num_held - 1))
            hidden_TH.masked_fill_(is_elsewhere_T[:, None], 0)
        else:
            hidden_TH = self._weight_PH.new_zeros(len(token_ids_T), width)
        return self._group.all_reduce(hidden_TH, "embedding")


class ScaledEmbedding(Embedding):
    """What it says is multiplied by ``multiplier``, adapters' own rows included."""

    def __init__(self, weight_PH: Weight, multiplier: float, first: int = 0, group: Group | None = None) -> None:
        super().__init__(weight_PH, first, group)
        self._multiplier = multiplier

    def __call__(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """See ``Embedding``."""
        return super().__call__(token_ids_T).mul_(self._multiplier)


class OutputHead:
    """Hidden states to logits. ``vocab_size``: V, where ``weight_PH`` is one rank's part of ceil(V / N) rows or fewer."""

    def __init__(self, weight_PH: Weight, vocab_size: int | None = None, group: Group | None = None) -> None:
        self._num_held = len(weight_PH)
        self._matmul = prepare_matmul(weight_PH) if self._num_held else None
        self._group = group or OneRank()
        self._vocab_size = vocab_size or self._num_held
        self._share = -(-self._vocab_size // self._group.world_size)
        self.side: SideWeights | None = None
        """Adapters' own heads."""

    def __call__(self, hidden_LH: torch.Tensor) -> torch.Tensor:
        """A new [L, V] in the model's dtype, on every rank. Wider where an adapter knows more tokens."""
        logits_LV = self._logits(hidden_LH)
        if self.side is None or not self.side.is_active:
            return logits_LV
        return self.side.logits(hidden_LH, logits_LV)

    def _logits(self, hidden_LH: torch.Tensor) -> torch.Tensor:
        num_rows = len(hidden_LH)
        part_LP = hidden_LH.new_zeros(num_rows, 0) if self._matmul is None else self._matmul(hidden_LH)
        if self._group.world_size == 1 or not num_rows:
            return part_LP if num_rows else hidden_LH.new_zeros(0, self._vocab_size)
        padded_LP = pad(part_LP, (0, self._share - self._num_held))
        parts_NLP = self._group.all_gather(padded_LP, "logits")
        return parts_NLP.transpose(0, 1).reshape(num_rows, -1)[:, : self._vocab_size].contiguous()


class BoundedHead(OutputHead):
    """Logits l become c tanh(m l / c), adapters' own included: m is ``multiplier``, c ``softcap``; None: l becomes m l."""

    def __init__(
        self,
        weight_PH: Weight,
        vocab_size: int,
        group: Group | None = None,
        *,
        multiplier: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        super().__init__(weight_PH, vocab_size, group)
        self._multiplier, self._softcap = multiplier, softcap

    def __call__(self, hidden_LH: torch.Tensor) -> torch.Tensor:
        """See ``OutputHead``."""
        logits_LV = super().__call__(hidden_LH)
        if self._softcap is None:
            return logits_LV.mul_(self._multiplier)
        is_unknown_LV = logits_LV == float("-inf") if self.side is not None and self.side.is_active else None
        logits_LV.mul_(self._multiplier / self._softcap).tanh_().mul_(self._softcap)
        return logits_LV if is_unknown_LV is None else logits_LV.masked_fill_(is_unknown_LV, float("-inf"))


__all__ = ["BoundedHead", "Embedding", "OutputHead", "ScaledEmbedding"]
