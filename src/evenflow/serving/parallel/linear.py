"""Linears of a decoder layer, whole or one rank's shard, each with the LoRA call of its site.

Column-parallel: the output columns are divided, nothing is exchanged. Row-parallel: the input columns
are divided and the partial sums are reduced. What a rank's LoRA adds goes into its partial output
before the reduction, so the reduction carries base and delta together (S-LoRA, section 6).
Legend: T rows, I input width, O output width (of this rank).
"""

from __future__ import annotations

import torch

from evenflow.serving.backends.devices.weight_products import Weight, prepare_matmul
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.parallel.group import Group


class ColumnLinear:
    """y_TO = x_TI W^T + b + LoRA. Several modules of one site may share the matrix (qkv, gate and up)."""

    def __init__(self, weight_OI: Weight, bias_O: torch.Tensor | None, layer: int, site: str) -> None:
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

    def __init__(self, weight_OI: Weight, bias_O: torch.Tensor | None, layer: int, site: str, group: Group) -> None:
        self.layer, self.site = layer, site
        self._matmul = prepare_matmul(weight_OI, bias_O)
        self._group = group

    def __call__(self, x_TI: torch.Tensor, lora: LoRABackend | None) -> torch.Tensor:
        """A new contiguous [T, O], equal on all ranks."""
        y_TO = self._matmul(x_TI)
        if lora is not None:
            lora.run(self.layer, self.site, x_TI, y_TO)
        return self._group.sum_outputs(y_TO, self.site)


__all__ = ["ColumnLinear", "RowLinear"]
