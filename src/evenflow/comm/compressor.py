"""What a compressor promises. ``factory`` makes one from its name.

A compressor turns a tensor into one contiguous message and back. It is plain tensor code: it knows neither groups nor
links (``transport``), and neither models nor sites (``evenflow.mcbench``). Everything in it is defined for one rank alone.

Two algebras decide which collectives can carry a message:

* LINEAR: C(x) + C(y) = C(x + y), so messages are floats that an all-reduce may add up;
* NONLINEAR: messages are bytes, which must be gathered and decoded before they can be added.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evenflow.base.errors import ConfigError, NonFiniteInput, WireError

Shape = Sequence[int]


class Algebra(enum.Enum):
    """Whether the messages of several ranks may be added up before they are decoded."""

    LINEAR = "linear"
    NONLINEAR = "nonlinear"


class GradientRule(enum.Enum):
    """What the backward pass does where the forward pass compressed."""

    STRAIGHT_THROUGH = "straight-through"
    """The gradient passes as if nothing had been compressed."""
    SAME = "same"
    """The gradient goes through the same compressor."""
    MASKED = "masked"
    """The gradient is kept only where the forward message had an entry."""
    AUTOGRAD = "autograd"
    """The exact derivative of encode and decode."""


@dataclass(frozen=True, slots=True)
class WirePlan:
    """How many bytes one encoded tensor has: the one fact that transports, ledgers and the cost model share."""

    payload_bytes: int
    """All bytes of the message, scales and indices included."""
    meta_bytes: int = 0
    """How many of ``payload_bytes`` are scales, indices or positions."""
    messages: int = 1
    """How many messages the bytes are split over (one per round)."""


@dataclass(frozen=True, slots=True)
class Context:
    """Which exchange a message belongs to; sender and receiver must pass equal contexts."""

    key: Hashable = ()
    """What memory belongs to: a site and rank for error feedback, a sample for deltas."""
    step: int = 0
    """Seeds shared randomness: equal on all ranks, and different for every exchange of a site."""


NO_CONTEXT = Context()


class Compressor(ABC):
    """Encode a floating tensor into one message and decode it again.

    ``encode`` returns a contiguous tensor of exactly ``wire_plan(x.shape, x.dtype).payload_bytes`` bytes: uint8 if NONLINEAR,
    floats if LINEAR. ``decode`` returns a new tensor of the given shape and dtype. A non-finite entry is never hidden:
    either ``encode`` raises NonFiniteInput or ``decode`` returns something non-finite.
    """

    algebra: Algebra = Algebra.NONLINEAR
    rounds: int = 1
    """How many reductions one exchange takes, each with a message of its own (2 for PowerSGD, 1 for all others)."""
    gradient: GradientRule = GradientRule.STRAIGHT_THROUGH
    by_rows: bool = True
    """Whether the last dimension has a meaning to it. If True, a transport may cut a tensor into pieces only between rows,
    where [..., width] counts as rows of ``width`` elements; if False, it may cut the flat tensor anywhere."""
    resends_sums: bool = True
    """Whether a sum of decoded messages can be encoded once more without losing most of it. A sum of sparse messages cannot: it
    has up to W times as many entries as are sent, so the default transport gathers all messages, as the paper does."""
    is_learned: bool = False
    """Whether its parameters are trained with the model."""
    spec: str = ""
    """The text that ``get_compressor`` made it from."""
    fresh: Callable[[], Compressor] | None = None
    """Makes another one from the same text; set by ``get_compressor``."""

    def __init__(self) -> None:
        self.synchronise: Callable[[Tensor], Tensor] = _identity

    @abstractmethod
    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        """Return the size of the message for such a tensor. Pure; raises ConfigError if it cannot be encoded."""

    @abstractmethod
    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Return the message for floating ``x`` of any shape: contiguous, one-dimensional or [rows, k], of ``message_dtype``.

        It has exactly ``wire_plan(x.shape, x.dtype).payload_bytes`` bytes. ``x`` is not changed. Raises NonFiniteInput where
        the format cannot show that an entry is not finite.
        """

    @abstractmethod
    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        """Return the tensor of ``shape`` and ``dtype`` that ``message`` stands for. Raises WireError for a wrong size."""

    def encode_into(self, message: Tensor, x: Tensor, context: Context = NO_CONTEXT) -> None:
        """Write the message for ``x`` to contiguous ``message``, which has its dtype and shape."""
        message.copy_(self.encode(x, context))

    def decode_into(self, message: Tensor, out: Tensor, context: Context = NO_CONTEXT) -> None:
        """Write the decoded message, made from a tensor of the shape and dtype of ``out``, to contiguous ``out``."""
        out.copy_(self.decode(message, out.shape, out.dtype, context))

    def add_decoded(
        self, message: Tensor, total: Tensor, dtype: torch.dtype = torch.float32, context: Context = NO_CONTEXT
    ) -> None:
        """Add the decoded message, made from a tensor of ``dtype``, to ``total`` in place."""
        total += self.decode(message, total.shape, dtype, context)

    def reduce(self, x: Tensor, context: Context = NO_CONTEXT) -> Generator[Tensor, Tensor, Tensor]:
        """Yield each message to be summed over ranks, be sent the sum (same shape and dtype), return the decoded sum.

        LINEAR compressors only. The result has the shape and dtype of ``x``.
        """
        total = yield self.encode(x, context)
        return self.decode(total, x.shape, x.dtype, context)

    def kept(self, x: Tensor, message: Tensor, context: Context) -> Tensor:
        """Return the part of ``x``, in its shape and dtype, that its own first ``message`` carries.

        Error feedback keeps ``x - kept(x)`` and adds it to the next tensor of the same key.
        """
        return self.decode(message, x.shape, x.dtype, context)

    def support(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Return the boolean mask of the entries of ``x`` that are sent at all."""
        return torch.ones_like(x, dtype=torch.bool)

    def prepare(  # noqa: B027 - most compressors have nothing to prepare
        self, width: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> None:
        """Make what depends on the last dimension: trainable parameters for tensors [..., ``width``].

        Equal on all ranks for equal seeds. Calling it again for the same width does nothing.
        """

    def synchronise_with(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply ``function`` to parameters used while encoding: it sums their gradients over ranks."""
        self.synchronise = function

    def message_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of the message for a tensor of ``dtype``."""
        return dtype if self.algebra is Algebra.LINEAR else torch.uint8

    def replica(self) -> Compressor:
        """Return the same compressor for another rank: shared parameters, a memory of its own."""
        assert self.fresh is not None, "only compressors that the factory made can be made again"
        return self.fresh()

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters; empty before ``prepare`` and for most compressors."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return what the compressor remembers between exchanges, parameters included."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        if state:
            raise WireError(f"{self.spec or type(self).__name__} remembers nothing; given: {sorted(state)}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec}>"


def _identity(x: Tensor) -> Tensor:
    return x


def num_elements(shape: Shape) -> int:
    """Return the product of ``shape``. Raises ConfigError for an empty tensor."""
    n = 1
    for size in shape:
        n *= int(size)
    if n == 0:
        raise ConfigError(f"a tensor of shape {tuple(shape)} is empty; nothing to send")
    return n


def rows_and_width(shape: Shape) -> tuple[int, int]:
    """Return (product of the leading dimensions, last dimension); a vector is one row."""
    n = num_elements(shape)
    width = int(shape[-1]) if len(shape) else 1
    return n // width, width


def check_finite(statistic: Tensor, who: str) -> None:
    """Raise NonFiniteInput unless all of ``statistic`` (for instance group maxima) is finite."""
    if not bool(torch.isfinite(statistic).all()):
        refuse_non_finite(who)


def refuse_non_finite(who: str) -> None:
    """Raise NonFiniteInput."""
    raise NonFiniteInput(f"{who}: the tensor to be sent holds NaN, infinity or a value beyond the wire format's range")
