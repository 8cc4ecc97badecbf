"""The seam between models and paged attention: plan() once per step, run() per layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from evenflow.serving.backends.devices.batch import Batch


class AttentionBackend(Protocol):
    """Rotates q and k, writes K and V of the step's rows into the arena, and attends. Causal.

    Implementations are made from (storage, cos_PE, sin_PE, sm_scale): the arena's tensor, the fp32 rope tables of P
    positions and E = head_dim / 2 angles (scaling folded in), and the factor of the scores. Where layers rotate in different
    ways the tables are [G, P, E], and the keyword ``rope_of_layer`` says which of the G each layer takes. Further keywords:
    ``windows``, for each layer how many tokens a row sees, its own included (None: all before it; empty: all layers see all),
    and ``softcap`` c, by which scores s become c tanh(s / c) before they are masked. Pages outside the windows of all layers
    are never read: what their page numbers say is not looked at.
    Legend: T rows, C = (num_heads + 2 num_kv_heads) head_dim, Q = num_heads head_dim.
    """

    def warm_up(self) -> None:
        """Compile whatever compiles at first use. Call once, on the thread that will call ``run``, before serving."""
        ...

    def plan(self, batch: Batch) -> None:
        """Prepare what is the same for all layers of a step: addresses of pages, rows of the rope tables, how threads share the
        work.  What the device shall read goes through ``batch.staging``, which is uploaded before ``run``.
        """
        ...

    def run(self, layer: int, qkv_TC: torch.Tensor) -> torch.Tensor:
        """Attention output [T, Q] of this layer, in the model's dtype. ``qkv_TC`` (contiguous) is overwritten.

        Columns: all query heads, all key heads, all value heads; before rope, after q/k norm.
        """
        ...


def tables_of_layers(table: torch.Tensor, num_layers: int, rope_of_layer: Sequence[int]) -> list[torch.Tensor]:
    """The [P, E] table of each layer, contiguous fp32: views of ``table``, [P, E] or [G, P, E]."""
    table_GPE = table.to(torch.float32).contiguous().view(-1, *table.shape[-2:])
    assert not rope_of_layer or len(rope_of_layer) == num_layers
    return [table_GPE[group] for group in rope_of_layer or [0] * num_layers]


def windows_of_layers(windows: Sequence[int | None], num_layers: int) -> tuple[int | None, ...]:
    """The window of each layer."""
    assert not windows or len(windows) == num_layers
    assert all(window is None or window > 0 for window in windows)
    return tuple(windows) or (None,) * num_layers
