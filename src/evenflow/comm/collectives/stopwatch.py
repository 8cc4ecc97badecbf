"""Where the time of an iteration goes: encode, decode, communication, by part.

A measured run is a separate run: taking times around every operation costs some itself, so headline times come from runs
without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from evenflow.comm.collectives.collective import Collective
from evenflow.comm.compressor import NO_CONTEXT, Compressor, Context, Shape, WirePlan


@dataclass
class Stopwatch:
    """Seconds by part. Nested parts are taken out of the outer one, so that parts add up."""

    clock: Callable[[], float] = time.perf_counter
    seconds_by_part: dict[str, float] = field(default_factory=dict)
    is_running: bool = True
    """False: parts cost nothing and are not counted."""
    _inner: list[float] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time inside to ``name``, less the time of parts inside it."""
        if not self.is_running:
            yield
            return
        start = self.clock()
        self._inner.append(0.0)
        try:
            yield
        finally:
            total = self.clock() - start
            own = total - self._inner.pop()
            self.seconds_by_part[name] = self.seconds_by_part.get(name, 0.0) + own
            if self._inner:
                self._inner[-1] += total

    def clear(self) -> None:
        """Forget all times; allowed outside of any part."""
        assert not self._inner
        self.seconds_by_part.clear()


class TimedCompressor(Compressor):
    """A compressor whose encode and decode are parts of a stopwatch."""

    def __init__(self, inner: Compressor, stopwatch: Stopwatch) -> None:
        super().__init__()
        self.inner = inner
        self.stopwatch = stopwatch
        self.algebra, self.rounds, self.gradient = inner.algebra, inner.rounds, inner.gradient
        self.by_rows, self.is_learned, self.spec = inner.by_rows, inner.is_learned, inner.spec
        self.resends_sums = inner.resends_sums

    def wire_plan(self, shape: Shape, dtype: torch.dtype) -> WirePlan:
        return self.inner.wire_plan(shape, dtype)

    def synchronise_with(self, function: Callable[[Tensor], Tensor]) -> None:
        self.inner.synchronise_with(function)

    def message_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.inner.message_dtype(dtype)

    def encode(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        with self.stopwatch.part("encode"):
            return self.inner.encode(x, context)

    def decode(self, message: Tensor, shape: Shape, dtype: torch.dtype, context: Context = NO_CONTEXT) -> Tensor:
        with self.stopwatch.part("decode"):
            return self.inner.decode(message, shape, dtype, context)

    def encode_into(self, message: Tensor, x: Tensor, context: Context = NO_CONTEXT) -> None:
        with self.stopwatch.part("encode"):
            self.inner.encode_into(message, x, context)

    def decode_into(self, message: Tensor, out: Tensor, context: Context = NO_CONTEXT) -> None:
        with self.stopwatch.part("decode"):
            self.inner.decode_into(message, out, context)

    def add_decoded(
        self, message: Tensor, total: Tensor, dtype: torch.dtype = torch.float32, context: Context = NO_CONTEXT
    ) -> None:
        with self.stopwatch.part("decode"):
            self.inner.add_decoded(message, total, dtype, context)

    def reduce(self, x: Tensor, context: Context = NO_CONTEXT):  # type: ignore[no-untyped-def]
        rounds = self.inner.reduce(x, context)
        with self.stopwatch.part("encode"):
            message = next(rounds)
        while True:
            total = yield message
            try:
                with self.stopwatch.part("decode"):
                    message = rounds.send(total)
            except StopIteration as done:
                return done.value

    def support(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return self.inner.support(x, context)

    def replica(self) -> Compressor:
        return TimedCompressor(self.inner.replica(), self.stopwatch)

    def prepare(
        self, width: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> None:
        self.inner.prepare(width, seed, dtype, device)

    def parameters(self) -> list[nn.Parameter]:
        return self.inner.parameters()


class TimedCollective:
    """A collective whose operations are a part of a stopwatch.

    While the stopwatch runs, every operation is preceded by a barrier, whose time is the part ``waiting``: so slow peers do
    not count as a slow link.
    """

    def __init__(self, inner: Collective, stopwatch: Stopwatch, part: str) -> None:
        self.inner = inner
        self.stopwatch = stopwatch
        self.part = part
        self.rank, self.world_size = inner.rank, inner.world_size

    def _wait(self) -> None:
        if self.stopwatch.is_running:
            with self.stopwatch.part("waiting"):
                self.inner.barrier()

    def all_reduce(self, x: Tensor) -> Tensor:
        self._wait()
        with self.stopwatch.part(self.part):
            return self.inner.all_reduce(x)

    def all_gather(self, x: Tensor) -> Tensor:
        self._wait()
        with self.stopwatch.part(self.part):
            return self.inner.all_gather(x)

    def all_to_all(self, x: Tensor) -> Tensor:
        self._wait()
        with self.stopwatch.part(self.part):
            return self.inner.all_to_all(x)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        self._wait()
        with self.stopwatch.part(self.part):
            return self.inner.reduce_scatter(x)

    def send(self, x: Tensor, to_rank: int) -> None:
        with self.stopwatch.part(self.part):
            self.inner.send(x, to_rank)

    def receive(self, like: Tensor, from_rank: int) -> Tensor:
        with self.stopwatch.part(self.part):
            return self.inner.receive(like, from_rank)

    def barrier(self) -> None:
        with self.stopwatch.part("waiting"):
            self.inner.barrier()
