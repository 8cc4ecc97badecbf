"""Confine what is sent to a subspace of the channels: x' = x U U^T with orthonormal U [h, r].

``subspace:r``: U is drawn once from a shared seed (the wire format of Protocol Models, 2506.01260; their constraint on the
weights, which keeps activations inside the subspace, is not part of it). ``subspace-learned:r``: U is trained on the Stiefel
manifold with the model, by the QR decomposition of a free matrix (after MAPL, 2606.05484).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evenflow.base.errors import ConfigError
from evenflow.comm.compressor import NO_CONTEXT, Algebra, Compressor, Context, GradientRule, Shape, WirePlan, rows_and_width
from evenflow.comm.spec_arguments import no_arguments, positive_int


class Subspace(Compressor):
    """Projection onto ``dimension`` orthonormal directions. Message: [rows, min(dimension, width)] in x's dtype."""

    algebra = Algebra.LINEAR
    gradient = GradientRule.AUTOGRAD

    def __init__(self, dimension: int, is_learned: bool = False) -> None:
        super().__init__()
        self.dimension = dimension
        self.is_learned = is_learned
        self.free: Tensor | None = None

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        rows, width = rows_and_width(shape)
        return WirePlan(rows * min(self.dimension, width) * dtype.itemsize)

    def prepare(
        self, width: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> None:
        """Draw the directions. Raises ConfigError if made for another width before."""
        if self.free is not None:
            if self.free.shape[0] != width:
                raise ConfigError(f"subspace made for {self.free.shape[0]} channels; given: {width}")
            return
        drawn = torch.randn(
            width, min(self.dimension, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        # QR needs at least fp32, whatever the model computes in.
        orthonormal = torch.linalg.qr(drawn).Q.to(device, torch.promote_types(dtype, torch.float32))
        self.free = nn.Parameter(orthonormal) if self.is_learned else orthonormal

    def _basis(self, free: Tensor, dtype: torch.dtype) -> Tensor:
        return (torch.linalg.qr(free).Q if self.is_learned else free).to(dtype)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        rows, width = rows_and_width(x.shape)
        self.prepare(width, dtype=x.dtype, device=x.device)
        assert self.free is not None
        return x.reshape(rows, width) @ self._basis(self.synchronise(self.free), x.dtype)

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        rows, width = rows_and_width(shape)
        self.prepare(width, dtype=dtype, device=message.device)
        assert self.free is not None
        basis = self._basis(self.free, message.dtype)
        return (message.reshape(rows, basis.shape[1]) @ basis.T).to(dtype).view(tuple(shape))

    def replica(self) -> Compressor:
        # Everything it remembers is the basis, which all ranks draw from the same seed or train together.
        return self

    def parameters(self) -> list[nn.Parameter]:
        return [self.free] if isinstance(self.free, nn.Parameter) else []

    def state_dict(self) -> dict[str, Any]:
        return {} if self.free is None else {"free": self.free}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            free = state["free"].detach().clone()
            self.free = nn.Parameter(free) if self.is_learned else free


def subspace(dimension: str = "64", *rest: str) -> Compressor:
    """Return the projection onto that many fixed random directions."""
    no_arguments("subspace:dimension", rest)
    return Subspace(positive_int("subspace", dimension))


def subspace_learned(dimension: str = "64", *rest: str) -> Compressor:
    """Return the projection onto that many learned directions."""
    no_arguments("subspace-learned:dimension", rest)
    return Subspace(positive_int("subspace-learned", dimension), is_learned=True)
