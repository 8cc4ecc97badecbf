"""Linears of a decoder layer, whole or one rank's shard, each with the LoRA call of its site.

Column-parallel: the output columns are divided, nothing is exchanged. Row-parallel: the input columns
are divided and the partial sums are reduced. What a rank's LoRA adds goes into its partial output
before the reduction, so the reduction carries base and delta together (S-LoRA, section 6).
Legend: T rows, I input width, O output width (of this rank).
"""

from __future__ import annotations

from typing import Protocol

import torch

from evenflow.serving.backends.lora import LoRABackend
from evenflow.serving.parallel.matrix import prepare_matmul


class Collective(Protocol):
    """What row-parallel linears and sharded embeddings need of a group of ranks."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        ...

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of all ranks' ``x``; may overwrite it."""
        ...


class OneRank:
    """The collective of a world of one: nothing to exchange."""

    world_size = 1

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` itself."""
        return x


class ColumnLinear:
    """y_TO = x_TI W^T + b + LoRA. Several modules of one site may share the matrix (qkv, gate and up)."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, layer: int, site: str) -> None:
        self.layer, self.site = layer, site
        self._matmul = prepare_matmul(weight_OI, bias_O)

    def __call__(self, x_TI: torch.Tensor, lora: LoRABackend | None) -> torch.Tensor:
        """A new contiguous [T, O]."""
        y_TO = self._matmul(x_TI)
        if lora is not None:
            lora.run(self.layer, self.site, x_TI, y_TO)
        return y_TO


class RowLinear:
    """y_TO = sum over ranks of (x_TI W^T + LoRA) + b. The bias belongs to one rank of the group."""

    def __init__(
        self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, layer: int, site: str, collective: Collective
    ) -> None:
        self.layer, self.site = layer, site
        self._matmul = prepare_matmul(weight_OI, bias_O)
        self._collective = collective

    def __call__(self, x_TI: torch.Tensor, lora: LoRABackend | None) -> torch.Tensor:
        """A new contiguous [T, O], equal on all ranks."""
        y_TO = self._matmul(x_TI)
        if lora is not None:
            lora.run(self.layer, self.site, x_TI, y_TO)
        return self._collective.all_reduce(y_TO)


__all__ = ["Collective", "ColumnLinear", "OneRank", "RowLinear"]
