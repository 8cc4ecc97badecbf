"""PowerSGD (Vogels et al. 2019): one step of power iteration, two reductions, warm-started.

For X [rows, h] summed over ranks: P = sum X Q_before; P^ = orthonormalise(P); Q = sum X^T P^; result P^ Q^T. The result is the
projection of the *sum* onto the columns of P^ (the authors' tensor-parallel code returns the mean). The basis is taken
as a constant in the backward pass, so the gradient is P^ P^T g, which exists for zero and rank-deficient X as well.

``is_batched`` is the paper's form: X [b, s, h] as b matrices, fp64 on the wire.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Hashable
from typing import Any

import torch
from torch import Tensor

from evenflow.base.errors import ConfigError
from evenflow.comm.compressor import (
    NO_CONTEXT,
    Algebra,
    Compressor,
    Context,
    GradientRule,
    Shape,
    WirePlan,
    check_finite,
    rows_and_width,
)
from evenflow.comm.spec_arguments import no_arguments, positive_int

_WIRE_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PowerSGD(Compressor):
    """Factors P^ Q^T of rank ``matrix_rank``. Message: P^ [b, m, r], then Q [b, h, r]."""

    algebra = Algebra.LINEAR
    rounds = 2
    gradient = GradientRule.AUTOGRAD

    def __init__(self, matrix_rank: int, wire_dtype: torch.dtype | None = None, is_batched: bool = False) -> None:
        super().__init__()
        self.matrix_rank = matrix_rank
        self.wire_dtype = wire_dtype
        self.is_batched = is_batched
        self._right: dict[Hashable, Tensor] = {}  # Q of the last exchange, by context key and matrix size
        self._basis: dict[Hashable, Tensor] = {}  # P^ of the last exchange

    def sizes(self, shape: Shape) -> tuple[int, int, int, int]:
        """Return (number of matrices, rows, columns, rank used)."""
        rows, width = rows_and_width(shape)
        count = int(shape[0]) if self.is_batched and len(shape) == 3 else 1
        return count, rows // count, width, min(self.matrix_rank, rows // count, width)

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        count, m, h, r = self.sizes(shape)
        return WirePlan(count * (m + h) * r * (self.wire_dtype or dtype).itemsize, messages=2)

    def message_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.wire_dtype or dtype

    def _slot(self, shape: Shape, context: Context) -> Hashable:
        return (context.key, self.sizes(shape))

    def _start(self, shape: Shape, dtype: torch.dtype, device: torch.device, context: Context) -> Tensor:
        count, _, h, r = self.sizes(shape)
        found = self._right.get(self._slot(shape, context))
        if found is not None:
            return found.to(dtype)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(h, r, generator=generator, dtype=torch.float64).to(device, dtype).expand(count, h, r)

    def _cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        message = x.to(self.wire_dtype or dtype)
        if self.wire_dtype == torch.float16:
            check_finite(message.detach(), self.spec or "powersgd")
        return message

    def reduce(self, x: Tensor, context: Context = NO_CONTEXT) -> Generator[Tensor, Tensor, Tensor]:
        count, m, h, _ = self.sizes(x.shape)
        # QR and products are done in at least fp32; a paper-form wire of fp64 computes in fp64, as there.
        work = self.wire_dtype if self.wire_dtype == torch.float64 else torch.promote_types(x.dtype, torch.float32)
        X = x.reshape(count, m, h).to(work)
        left = yield self._cast(X.detach() @ self._start(x.shape, X.dtype, x.device, context), x.dtype)
        check_finite(left, self.spec or "powersgd")
        basis = torch.linalg.qr(left.to(X.dtype)).Q
        right = yield self._cast(X.mT @ basis, x.dtype)
        slot = self._slot(x.shape, context)
        self._right[slot], self._basis[slot] = right.detach().to(X.dtype), basis
        return (basis @ right.to(X.dtype).mT).to(x.dtype).view(x.shape)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Run both rounds for one rank alone and return P^ and Q in one message."""
        steps = self.reduce(x, context)
        left = next(steps)
        right = steps.send(left)
        with contextlib.suppress(StopIteration):
            steps.send(right)
        basis = self._cast(self._basis[self._slot(x.shape, context)], x.dtype)
        return torch.cat([basis.reshape(-1), right.reshape(-1)])

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        count, m, h, r = self.sizes(shape)
        left, right = message.split([count * m * r, count * h * r])
        work = torch.promote_types(message.dtype, torch.float32)
        return (left.view(count, m, r).to(work) @ right.view(count, h, r).to(work).mT).to(dtype).view(tuple(shape))

    def kept(self, x: Tensor, message: Tensor, context: Context) -> Tensor:
        count, m, h, _ = self.sizes(x.shape)
        basis = self._basis[self._slot(x.shape, context)]
        X = x.reshape(count, m, h).to(basis.dtype)
        return (basis @ (basis.mT @ X)).to(x.dtype).view(x.shape)

    def state_dict(self) -> dict[str, Any]:
        return {"right": dict(self._right)} if self._right else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._right = dict(state.get("right", {}))


def powersgd(matrix_rank: str = "50", wire_dtype: str = "", *rest: str) -> Compressor:
    """Return PowerSGD of that rank; ``powersgd:50:fp16`` sends fp16 (default: the tensor's dtype)."""
    no_arguments("powersgd:rank:dtype", rest)
    if wire_dtype and wire_dtype not in _WIRE_DTYPES:
        raise ConfigError(f"powersgd:{matrix_rank}:{wire_dtype}: allowed wire types: {', '.join(_WIRE_DTYPES)}")
    return PowerSGD(positive_int("powersgd", matrix_rank), _WIRE_DTYPES.get(wire_dtype))
