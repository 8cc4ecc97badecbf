"""Tensors of a model folder as a layer wants them: in the serving dtype, on the device, stacked, and only one rank's part.

Legend: matrices are [output, input].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evenflow.serving.backends.devices.weight_products import Weight
from evenflow.serving.core.shard import Shard
from evenflow.serving.models.matrices import Matrices
from evenflow.serving.models.stored.stored_weights import StoredWeights


class WeightSource:
    """What ``stored`` holds, for the rank of ``shard``."""

    def __init__(
        self, stored: StoredWeights, matrices: Matrices, dtype: torch.dtype, device: torch.device, shard: Shard
    ) -> None:
        self._stored, self.matrices, self._dtype, self._device, self.shard = stored, matrices, dtype, device, shard

    def tensor(self, name: str) -> torch.Tensor:
        """The whole of one tensor."""
        # Always a copy, even with dtype and device unchanged, since the mapped file is closed after loading.
        return self._stored.tensor(name).to(device=self._device, dtype=self._dtype, copy=True)

    def columns_of(self, prefix: str, modules: Sequence[str], *, has_bias: bool) -> tuple[Weight, torch.Tensor | None]:
        """Column-parallel modules of one site, one after another: the rank's rows of their matrices, and of their biases.

        ``prefix``: the block they are in, with a dot at its end.
        """
        rows = [self.shard.outputs(module) for module in modules]
        names = [f"{prefix}{module}" for module in modules]
        weight = self.matrices.linear([f"{name}.weight" for name in names], rows)
        bias = self.matrices.plain([f"{name}.bias" for name in names], rows) if has_bias else None
        return weight, bias

    def rows_of(self, prefix: str, module: str, *, has_bias: bool) -> tuple[Weight, torch.Tensor | None]:
        """A row-parallel module: the rank's columns of its matrix. Outputs are summed, so that only rank 0 adds the bias."""
        name = f"{prefix}{module}.weight"
        whole = range(self._stored.shapes[name][0])
        bias = self.tensor(f"{prefix}{module}.bias") if has_bias and self.shard.rank == 0 else None
        return self.matrices.linear([name], [whole], self.shard.inputs(module)), bias

    def part(self, name: str, rows: range) -> torch.Tensor:
        """These rows of one tensor."""
        return self.matrices.plain([name], [rows])


__all__ = ["WeightSource"]
