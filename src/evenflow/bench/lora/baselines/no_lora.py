"""No LoRA at all: for weights that have their adapter merged in, and as the bound of what adapters can cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.core.adapter import AdapterSignature


class NoLoRA:
    """Has the methods of a LoRABackend and leaves every output as it is. In no registry: it breaks the contract."""

    def warm_up(self) -> None:
        """Nothing to compile."""

    def bind(self, slot: int, signature: AdapterSignature, pages: Sequence[int]) -> None:
        """Nothing to bind."""

    def plan(self, batch: Batch) -> None:
        """Nothing to plan."""

    def run(self, layer: int, site: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """``y_TO`` stays."""
