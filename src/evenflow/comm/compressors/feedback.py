"""Compressors with a memory: error feedback around any other, and AQ-SGD's deltas.

``ef(spec)``: e <- (x + e) - what was sent of (x + e). Memory is kept per context key and shape, so a last, smaller batch
has its own and nothing is skipped silently. (The authors' code stores x - y, without the carried error.)

``aqsgd:bits`` (Wang et al. 2022, 2206.01299): sender and receiver both remember what was last decoded for a key (a sample);
only the quantised change is sent. Unlike the paper's first epoch, the first visit is a delta against zero, so that every
message has the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from evenflow.base.errors import ConfigError
from evenflow.comm.compressor import NO_CONTEXT, Algebra, Compressor, Context, Shape, WirePlan
from evenflow.comm.compressors.quantise import GroupInt
from evenflow.comm.spec_arguments import no_arguments, positive_int


def _slot(context: Context, shape: Shape) -> Hashable:
    return (context.key, tuple(shape))


class DeltaInt(Compressor):
    """Group-32 integers of the difference to the last decoded value of the same key.

    Message: that of ``GroupInt`` (``bits`` bits an element and 2 bytes of scale per 32). It remembers one fp32 tensor for
    each key at the sender and one at the receiver.
    """

    by_rows = False

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.inner = GroupInt(bits)
        self._sent: dict[Hashable, Tensor] = {}
        self._received: dict[Hashable, Tensor] = {}

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        return self.inner.wire_plan(shape, torch.float32)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        slot = _slot(context, x.shape)
        last = self._sent.get(slot)
        value = x.detach().float()
        message = self.inner.encode(value if last is None else value - last)
        change = self.inner.decode(message, x.shape, torch.float32)
        self._sent[slot] = change if last is None else last + change
        return message

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        slot = _slot(context, shape)
        change = self.inner.decode(message, shape, torch.float32)
        last = self._received.get(slot)
        value = change if last is None else last + change
        self._received[slot] = value
        return value.to(dtype, copy=True)

    def state_dict(self) -> dict[str, Any]:
        return {"sent": dict(self._sent), "received": dict(self._received)} if self._sent or self._received else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sent = dict(state.get("sent", {}))
        self._received = dict(state.get("received", {}))


class ErrorFeedback(Compressor):
    """Add what the last message of the same key left out, before encoding with ``inner``.

    Raises ConfigError around a compressor that keeps such a memory itself.
    """

    def __init__(self, inner: Compressor) -> None:
        super().__init__()
        if isinstance(inner, DeltaInt | ErrorFeedback):
            raise ConfigError(f"ef({inner.spec}): {inner.spec} keeps a memory of its own; error feedback around it is refused")
        self.inner = inner
        self.algebra = inner.algebra
        self.rounds = inner.rounds
        self.by_rows = inner.by_rows
        self.resends_sums = inner.resends_sums
        self.is_learned = inner.is_learned
        # The carried error is a constant, so the derivative is the inner one.
        self.gradient = inner.gradient
        self._error: dict[Hashable, Tensor] = {}

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        return self.inner.wire_plan(shape, dtype)

    def _corrected(self, x: Tensor, context: Context) -> Tensor:
        error = self._error.get(_slot(context, x.shape))
        return x if error is None else x + error.to(x.dtype)

    def _remember(self, corrected: Tensor, message: Tensor, context: Context) -> None:
        with torch.no_grad():
            kept = self.inner.kept(corrected.detach(), message.detach(), context)
            self._error[_slot(context, corrected.shape)] = corrected.detach() - kept

    def error(self, shape: Shape, context: Context = NO_CONTEXT) -> Tensor | None:
        """Return the error carried to the next message of that key and shape, if any."""
        return self._error.get(_slot(context, shape))

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        corrected = self._corrected(x, context)
        message = self.inner.encode(corrected, context)
        self._remember(corrected, message, context)
        return message

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        return self.inner.decode(message, shape, dtype, context)

    def add_decoded(
        self, message: Tensor, total: Tensor, dtype: torch.dtype = torch.float32, context: Context = NO_CONTEXT
    ) -> None:
        self.inner.add_decoded(message, total, dtype, context)

    def reduce(self, x: Tensor, context: Context = NO_CONTEXT) -> Generator[Tensor, Tensor, Tensor]:
        if self.algebra is not Algebra.LINEAR:
            raise ConfigError(f"{self.spec}: messages of a nonlinear compressor cannot be summed")
        corrected = self._corrected(x, context)
        rounds = self.inner.reduce(corrected, context)
        own = first = next(rounds)
        try:
            while True:
                total = yield own
                own = rounds.send(total)
        except StopIteration as done:
            self._remember(corrected, first, context)
            return done.value

    def support(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return self.inner.support(x, context)

    def prepare(
        self, width: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> None:
        self.inner.prepare(width, seed, dtype, device)

    def synchronise_with(self, function: Callable[[Tensor], Tensor]) -> None:
        self.inner.synchronise_with(function)

    def message_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.inner.message_dtype(dtype)

    def replica(self) -> Compressor:
        twin = ErrorFeedback(self.inner.replica())
        twin.spec = self.spec
        return twin

    def parameters(self) -> list[nn.Parameter]:
        return self.inner.parameters()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "error": dict(self._error)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._error = dict(state.get("error", {}))
        if state.get("inner"):
            self.inner.load_state_dict(state["inner"])


def aqsgd(bits: str = "4", *rest: str) -> Compressor:
    """Return AQ-SGD deltas of 4, 6 or 8 bits."""
    no_arguments("aqsgd:bits", rest)
    width = positive_int("aqsgd", bits)
    if width not in (2, 3, 4, 6, 8):
        raise ConfigError(f"aqsgd:{bits}: allowed: 2, 3, 4, 6 or 8 bits")
    return DeltaInt(width)
