"""The paper's learned auto-encoder: z = x E^T with E [c, h]; y = z D^T with D [h, c]. The sum over ranks is taken over z.

E is used on every rank with its own part of x, so its gradient is a part too: it passes through ``synchronise``, which
sums it over ranks. (The authors' code leaves it out and its encoders drift apart.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evenflow.base.errors import ConfigError
from evenflow.comm.compressor import NO_CONTEXT, Algebra, Compressor, Context, GradientRule, Shape, WirePlan, rows_and_width
from evenflow.comm.spec_arguments import no_arguments, positive_int


class AutoEncoder(Compressor):
    """A linear encoder and decoder of width ``code_width``, trained with the model.

    Message: [rows, code_width] in x's dtype.
    """

    algebra = Algebra.LINEAR
    gradient = GradientRule.AUTOGRAD
    is_learned = True

    def __init__(self, code_width: int) -> None:
        super().__init__()
        self.code_width = code_width
        self.encoder: nn.Parameter | None = None
        self.decoder: nn.Parameter | None = None

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        rows, _ = rows_and_width(shape)
        return WirePlan(rows * self.code_width * dtype.itemsize)

    def prepare(
        self, width: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> None:
        """Draw E and D from Xavier's uniform distribution. Raises ConfigError if made for another width before."""
        if self.encoder is not None:
            if self.encoder.shape[1] != width:
                raise ConfigError(f"auto-encoder made for {self.encoder.shape[1]} channels; given: {width}")
            return
        generator = torch.Generator().manual_seed(seed)
        bound = (6.0 / (width + self.code_width)) ** 0.5

        def draw(*size: int) -> nn.Parameter:
            return nn.Parameter(((torch.rand(*size, generator=generator) * 2 - 1) * bound).to(device, dtype))

        self.encoder = draw(self.code_width, width)
        self.decoder = draw(width, self.code_width)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        rows, width = rows_and_width(x.shape)
        self.prepare(width, dtype=x.dtype, device=x.device)
        assert self.encoder is not None
        return x.reshape(rows, width) @ self.synchronise(self.encoder).T.to(x.dtype)

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        rows, width = rows_and_width(shape)
        self.prepare(width, dtype=dtype, device=message.device)
        assert self.decoder is not None
        return (message.reshape(rows, self.code_width) @ self.decoder.T.to(message.dtype)).to(dtype).view(tuple(shape))

    def replica(self) -> Compressor:
        # Everything it remembers is in the parameters, which all ranks share.
        return self

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in (self.encoder, self.decoder) if p is not None]

    def state_dict(self) -> dict[str, Any]:
        return {"encoder": self.encoder, "decoder": self.decoder} if self.encoder is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.encoder = nn.Parameter(state["encoder"].detach().clone())
            self.decoder = nn.Parameter(state["decoder"].detach().clone())


def autoencoder(code_width: str = "100", *rest: str) -> Compressor:
    """Return the learned auto-encoder with that many code channels."""
    no_arguments("ae:width", rest)
    return AutoEncoder(positive_int("ae", code_width))
