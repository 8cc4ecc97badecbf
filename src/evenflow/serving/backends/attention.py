"""The seam between models and paged attention: plan() once per step, run() per layer."""

from __future__ import annotations

from typing import Protocol

import torch

from evenflow.serving.backends.batch import Batch


class AttentionBackend(Protocol):
    """Rotates q and k, writes K and V of the step's rows into the arena, and attends. Causal.

    Legend: T rows, C = (num_heads + 2 num_kv_heads) head_dim, Q = num_heads head_dim.
    """

    def plan(self, batch: Batch) -> None:
        """Prepare what is the same for all layers: page addresses, rope rows, work division."""
        ...

    def run(self, layer: int, qkv_TC: torch.Tensor) -> torch.Tensor:
        """Attention output [T, Q] of this layer, in the model's dtype. ``qkv_TC`` (contiguous) is overwritten.

        Columns: all query heads, all key heads, all value heads; before rope, after q/k norm.
        """
        ...
