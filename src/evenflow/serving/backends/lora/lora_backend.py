"""The seam between linears and LoRA: plan() once per step, run() per layer and site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.lora.rank_space import RankSpace
from evenflow.serving.core.adapter import AdapterSignature


class LoRABackend(Protocol):
    """Adds each row's own adapter to a site's output. Rows are read from arena pages, never padded to a maximum rank.

    Implementations are made from (storage): the arena's tensor.
    Legend: T rows, I input width, O output widths of the site's modules one after another.
    """

    def warm_up(self) -> None:
        """Compile whatever compiles at first use. Call once, on the thread that will call ``run``, before serving."""
        ...

    def bind(self, slot: int, signature: AdapterSignature, pages: Sequence[int]) -> None:
        """From now on ``slot`` means the adapter whose rows lie in ``pages`` (already copied)."""
        ...

    def plan(self, batch: Batch) -> None:
        """Prepare what is the same for all layers: rows by adapter, equal work per thread. See ``AttentionBackend.plan``."""
        ...

    def run(self, layer: int, site: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """y_TO[t] += B(slot of t) A(slot of t) x_TI[t] for the modules of ``site``, in place.

        Both in the model's dtype with unit stride inside a row (rows may lie apart).
        Base-only rows are untouched, bit for bit.
        """
        ...


@runtime_checkable
class SplitLoRABackend(LoRABackend, Protocol):
    """A LoRA backend whose two halves can be called apart, so that tensor-parallel ranks can exchange what lies between.

    Rows of A and B are this rank's, as the storage's layout says. Legend: P parts, M floats per part, see ``RankSpace``.
    """

    def shrink(self, layer: int, site: str, x_TI: torch.Tensor, space: RankSpace) -> torch.Tensor:
        """The rank's message: fp32 [M], zero where it holds no row of A.

        message[offset of t + field of m + r] = sum_i A_m[r, i] x_TI[t, i] for the rows r of A_m in this arena.
        """
        ...

    def expand(self, layer: int, site: str, parts_PM: torch.Tensor, y_TO: torch.Tensor, space: RankSpace) -> None:
        """y_TO[t, columns of m] += sum_r s[t, m, r] B_m[r], in place, with s read from the exchanged fp32 parts.

        ``y_TO``: as wide as this rank's rows of B. Base-only rows are untouched, bit for bit.
        """
        ...
