"""Token embedding and output head. Legend: T rows, L rows whose logits are wanted, H hidden, V vocabulary."""

from __future__ import annotations

import torch

from evenflow.serving.parallel.matrix import prepare_matmul


class Embedding:
    """Rows of a table by token id."""

    def __init__(self, weight_VH: torch.Tensor) -> None:
        self._weight_VH = weight_VH

    def __call__(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """A new [T, H]."""
        return self._weight_VH.index_select(0, token_ids_T)


class OutputHead:
    """Hidden states to logits."""

    def __init__(self, weight_VH: torch.Tensor) -> None:
        self._matmul = prepare_matmul(weight_VH)

    def __call__(self, hidden_LH: torch.Tensor) -> torch.Tensor:
        """A new [L, V] in the model's dtype."""
        return self._matmul(hidden_LH)


__all__ = ["Embedding", "OutputHead"]
