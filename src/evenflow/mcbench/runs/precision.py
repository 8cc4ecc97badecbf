"""What a model computes in, and how exact a split must be there: fp32, bf16, fp16, or autocast (bf16 over fp32 weights)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evenflow.base.errors import ConfigError
from evenflow.mcbench.names import DTYPES
from evenflow.mcbench.split.parity import first_tensor


@dataclass(frozen=True, slots=True)
class Precision:
    """One choice of ``--dtype``."""

    name: str
    weights: torch.dtype
    tolerance: float
    """Largest difference of an uncompressed split model to the single process, relative to the largest entry. Sums over ranks
    are rounded in another order, so the gate is a small multiple of what one rounding costs in this dtype."""
    is_autocast: bool = False

    def context(self) -> AbstractContextManager[Any]:
        """Return the context that forward calls run in."""
        return torch.autocast("cpu", torch.bfloat16) if self.is_autocast else nullcontext()

    def inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs of a model, floats in the dtype of its weights."""
        return {name: x.to(self.weights) if x.is_floating_point() else x for name, x in inputs.items()}

    def logits(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return a model's logits, as fp32: losses and scores are taken in it."""
        with self.context():
            return first_tensor(model(**self.inputs(inputs))).float()


def precision(name: str) -> Precision:
    """Return the precision of that name. Raises ConfigError."""
    if name not in _PRECISIONS:
        raise ConfigError(f"dtype {name!r}; allowed: {', '.join(DTYPES)}")
    return _PRECISIONS[name]


_PRECISIONS = {
    "fp32": Precision("fp32", torch.float32, 1e-5),
    "bf16": Precision("bf16", torch.bfloat16, 0.1),
    "fp16": Precision("fp16", torch.float16, 0.02),
    "autocast": Precision("autocast", torch.float32, 0.1, is_autocast=True),
}
