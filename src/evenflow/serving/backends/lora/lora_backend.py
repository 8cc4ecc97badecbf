"""The seam between linears and LoRA: plan() once per step, run() per layer and site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from evenflow.serving.backends.devices.batch import Batch
from evenflow.serving.backends.lora.rank_space import RankSpace
from evenflow.serving.core.adapter import AdapterSignature


class LoRABackend(Protocol):
    """Adds to a site's output, for each token row, what its own adapter contributes.

    Factor rows (rows of A and of B transposed) are read from the pages where they lie; nothing is padded to a maximum
    LoRA rank. Implementations are made from (storage): the arena's tensor.
    Legend: T token rows, I input width, O output widths of the site's modules one after another.
    """

    def warm_up(self) -> None:
        """Compile whatever compiles at first use. Call once, on the thread that will call ``run``, before serving."""
        ...

    def bind(self, slot: int, signature: AdapterSignature, pages: Sequence[int]) -> None:
        """From now on ``slot`` stands for the adapter whose factor rows lie in ``pages``; they have been copied there."""
        ...

    def plan(self, batch: Batch) -> None:
        """Prepare what is the same for all layers of a step, such as which token rows have which adapter.

        Called once per step, before ``run``. See ``AttentionBackend.plan``.
        """
        ...

    def run(self, layer: int, site: str, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """y_TO[t] += B(slot of t) A(slot of t) x_TI[t] for the modules of ``site``, in place.

        Both in the model's dtype, with unit stride inside a token row; token rows may lie apart. Token rows without an
        adapter keep every bit.
        """
        ...


@runtime_checkable
class SplitLoRABackend(LoRABackend, Protocol):
    """A LoRA backend whose two halves can be called apart, so that tensor-parallel ranks can exchange what lies between.

    The storage holds this rank's factor rows, as its layout says. Legend: P parts of a message, M floats in a part; see
    ``RankSpace``.
    """

    def shrink(self, layer: int, site: str, x_TI: torch.Tensor, space: RankSpace) -> torch.Tensor:
        """What this rank sends to the others: fp32 [M], zero wherever it holds no row of A.

        message[offset of t + field of m + r] = sum_i A_m[r, i] x_TI[t, i] for the rows r of A_m that this arena holds.
        """
        ...

    def expand(self, layer: int, site: str, parts_PM: torch.Tensor, y_TO: torch.Tensor, space: RankSpace) -> None:
        """y_TO[t, columns of m] += sum_r s[t, m, r] B_m[r], in place, with s read from the exchanged fp32 parts.

        ``y_TO`` is as wide as this rank's rows of B. Token rows without an adapter keep every bit.
        """
        ...
