"""Where a step's rank-space vectors lie in the message that ranks exchange about one LoRA site.

Sharded LoRA (S-LoRA, section 6) computes s = A x in parts, exchanges them, and goes on with B. One message carries all
modules of the site and all token rows of the step, in batch order. A token row takes as many floats as its own adapter's
LoRA rank asks for; nothing is padded to a common LoRA rank. This file only computes where things lie: backends fill and
read messages, and ``parallel`` sends them.
Legend: T token rows, L layers, m modules of the site, S slots, N tensor-parallel ranks of the group.
"""

from __future__ import annotations

import numpy as np

from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.shape import MODULES, SITES
from evenflow.serving.core.shard import COLUMN_SITES


class RankSpace:
    """The messages of one site. ``plan`` once per step.

    A module of LoRA rank r has a field of c = ceil(r / N) floats in each of N gathered parts (column-parallel sites), or
    one field of N c floats in the one sum of parts (row-parallel sites). Either way N c floats per token row are exchanged.
    """

    def __init__(self, site: str, num_layers: int, world_size: int) -> None:
        self.site = site
        self.is_gathered = site in COLUMN_SITES
        """True: parts are gathered side by side; False: they are added up."""
        self.num_parts = world_size if self.is_gathered else 1
        """Parts that each rank has after the exchange."""
        self.modules = np.array([MODULES.index(module) for module in SITES[site]], np.int64)
        self._world_size = world_size
        self.fields = np.zeros((16, num_layers, len(self.modules)), np.int32)
        """int32 [S, L, m]: floats per part of each module, by slot."""
        self.offsets = np.zeros((num_layers, 1), np.int64)
        """int64 [L, T + 1]: first float of each token row in a part; the last column is the number of floats in the part."""
        self.slot_of_token_row = np.zeros(0, np.int64)
        """int64 [T]: slot of each token row's adapter, -1 for none."""
        self._planned: tuple[np.ndarray, np.ndarray] | None = None

    def bind(self, slot: int, signature: AdapterSignature) -> None:
        """From now on ``slot`` means an adapter of this signature."""
        if slot >= len(self.fields):
            grown = np.zeros((max(2 * len(self.fields), slot + 1), *self.fields.shape[1:]), np.int32)
            grown[: len(self.fields)] = self.fields
            self.fields = grown
        ranks = np.asarray(signature.lora_ranks, np.int32)[:, self.modules]
        share = -(-ranks // self._world_size)
        self.fields[slot] = share if self.is_gathered else share * self._world_size
        self._planned = None

    def plan(self, batch: Batch) -> None:
        """Lay out the messages of the step, for every layer."""
        if self._planned is not None and all(
            np.array_equal(old, new) for old, new in zip(self._planned, (batch.adapter_slots, batch.row_starts))
        ):
            return
        self._planned = batch.adapter_slots, batch.row_starts
        self.slot_of_token_row = np.repeat(batch.adapter_slots.astype(np.int64), np.diff(batch.row_starts))
        sizes_SL = self.fields.sum(axis=2, dtype=np.int64)
        sizes_TL = np.where(self.slot_of_token_row[:, None] >= 0, sizes_SL[self.slot_of_token_row], 0)
        self.offsets = np.zeros((sizes_TL.shape[1], len(sizes_TL) + 1), np.int64)
        np.cumsum(sizes_TL.T, axis=1, out=self.offsets[:, 1:])

    def size(self, layer: int) -> int:
        """Floats in one part of ``layer``'s message; 0 if no token row of the step has an adapter there."""
        return int(self.offsets[layer, -1])


__all__ = ["RankSpace"]
