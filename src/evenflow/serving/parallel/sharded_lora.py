"""LoRA over tensor-parallel ranks: shrink, exchange in rank space, expand (S-LoRA, section 6).

Column-parallel sites (qkv, gate_up): each rank multiplies with its rows of A, the pieces are gathered, and B makes this
rank's output columns of them. Row-parallel sites (o, down): each rank multiplies its input columns, the vectors are added
up, and B fills this rank's run of columns of the partial output, so that the base model's own sum completes it. One
message per site and layer, for all its modules and all token rows. Sites that the shard does not list as exchanged go
straight to the backend: there the rank holds A (or B) whole and nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evenflow.base.errors import ConfigError
from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.lora.lora_backend import LoRABackend, SplitLoRABackend
from evenflow.serving.backends.lora.rank_space import RankSpace
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.shape import SITES
from evenflow.serving.core.shard import Shard
from evenflow.serving.parallel.group import Group


class ExchangedLoRA:
    """A LoRABackend over the ranks of a group, made of each rank's own. Raises ConfigError if that one cannot be split."""

    def __init__(self, backend: LoRABackend, shard: Shard, group: Group) -> None:
        if not isinstance(backend, SplitLoRABackend):
            raise ConfigError(
                f"{type(backend).__name__} computes A and B in one go, so its adapters cannot be divided over ranks; "
                "allowed: lora_sharding replicated"
            )
        self._backend = backend
        self._group = group
        self._spaces = {site: RankSpace(site, shard.whole.num_layers, shard.world_size) for site in shard.exchanged}
        # A site's modules start at the same column of B on this rank; row-parallel sites have one module.
        self._columns = {}
        for site in shard.exchanged:
            outputs, held = (sum(len(f(m)) for m in SITES[site]) for f in (shard.outputs, shard.b_columns))
            first = shard.b_columns(SITES[site][0]).start if held < outputs else 0
            self._columns[site] = slice(first, first + held)

    def warm_up(self) -> None:
        """See ``LoRABackend``."""
        self._backend.warm_up()

    def bind(self, slot: int, signature: AdapterSignature, pages: Sequence[int]) -> None:
        """See ``LoRABackend``."""
        self._backend.bind(slot, signature, pages)
        for space in self._spaces.values():
            space.bind(slot, signature)

    def plan(self, batch: Batch) -> None:
        """See ``LoRABackend``."""
        self._backend.plan(batch)
        for space in self._spaces.values():
            space.plan(batch)

    def run(self, layer: int, site: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See ``LoRABackend``. ``y_TO``: this rank's output columns, or its partial sums."""
        space = self._spaces.get(site)
        if space is None:
            self._backend.run(layer, site, x_TI, y_TO)
            return
        if not space.size(layer):
            return
        message_M = self._backend.shrink(layer, site, x_TI, space)
        if space.is_gathered:
            parts_PM = self._group.all_gather(message_M, f"lora.{site}")
        else:
            parts_PM = self._group.all_reduce(message_M, f"lora.{site}")[None]
        self._backend.expand(layer, site, parts_PM, y_TO[:, self._columns[site]], space)


__all__ = ["ExchangedLoRA"]
