"""What was calibrated on one machine and link: the constants of the cost model, and their file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.comm.ledger import Kind


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds by size (bytes sent, or elements coded): measured points, straight between them.

    Below the smallest size its own time; beyond the largest on with the last slope. Points and not one line: a shaped
    link lets short bursts pass, a cache ends somewhere, and the paper's own formula has a constant branch.
    """

    points: tuple[tuple[float, float], ...]
    """(size, seconds) by rising size, at least one."""

    @property
    def fixed_s(self) -> float:
        """The time of the smallest measured size."""
        return self.points[0][1]

    @property
    def unit_s(self) -> float:
        """Seconds per unit at large sizes: the last slope."""
        (low, below), (high, above) = self.points[-2:] if len(self.points) > 1 else ((0.0, 0.0), self.points[0])
        return max(above - below, 0.0) / (high - low)

    def at(self, size: float) -> float:
        """Return the seconds for a size."""
        if size <= self.points[0][0]:
            return self.points[0][1]
        for (low, below), (high, above) in pairwise(self.points):
            if size <= high:
                return below + (size - low) / (high - low) * (above - below)
        return self.points[-1][1] + (size - self.points[-1][0]) * self.unit_s


def curve(points: Iterable[Iterable[float]]) -> Curve:
    """Return the curve through (size, seconds), in any order."""
    return Curve(tuple(sorted((float(size), float(seconds)) for size, seconds in points)))


@dataclass(frozen=True, slots=True)
class Machine:
    """Times of one rank, while its peer is at work too."""

    flop_per_s: tuple[tuple[int, float], ...]
    """(hidden size, rate) of a Transformer layer's forward and backward pass, by rising size."""
    operations: Mapping[str, Curve]
    """Seconds by bytes that a rank sends, by ``operation_name``, measured with two ranks."""
    encode: Mapping[str, Curve] = field(default_factory=dict)
    """Seconds of one call by elements, by spec."""
    decode: Mapping[str, Curve] = field(default_factory=dict)
    link: str = "unlimited"
    """Between the ranks of a node: tensor parallelism's sums."""
    link_kind: str = "unlimited"
    send_between: Curve | None = None
    """Seconds by bytes of a message from node to node, over a pipeline boundary; None: as within a node."""
    link_between: str = ""
    """Between nodes; empty: the same as ``link``."""
    link_between_kind: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def flops_at(self, hidden: int) -> float:
        """Return the rate at a hidden size, between the calibrated ones by the logarithm, beyond them the nearest."""
        points = self.flop_per_s
        if hidden <= points[0][0]:
            return points[0][1]
        for (low, below), (high, above) in pairwise(points):
            if hidden <= high:
                share = math.log(hidden / low) / math.log(high / low)
                return below + share * (above - below)
        return points[-1][1]

    def operation(self, kind: Kind, dtype: str = "uint8") -> Curve:
        """Return the curve of an operation. Raises ConfigError if it was not calibrated."""
        for name in (operation_name(kind, dtype), kind.value):
            if name in self.operations:
                return self.operations[name]
        raise ConfigError(f"{kind.value} was not calibrated; known: {', '.join(self.operations)}")

    @property
    def boundary(self) -> Curve:
        """The curve of a message over a pipeline boundary."""
        return self.send_between or self.operation(Kind.SEND)

    @property
    def byte_per_s(self) -> float:
        """The achieved rate of a rank's sending in a large dense all-reduce."""
        return 1 / max(self.operation(Kind.ALL_REDUCE).unit_s, 1e-12)

    def at_rate(self, link: str, bit_per_s: float) -> Machine:
        """Return what this machine would be on an ideal link of another rate, with the fixed times measured here."""
        operations = {name: _ideal(measured, bit_per_s) for name, measured in self.operations.items()}
        return replace(self, operations=operations, link=link, link_kind=_ASSUMED)

    def at_rate_between(self, link: str, bit_per_s: float) -> Machine:
        """Return what this machine would be with an ideal link of this rate between nodes, and its own link inside them."""
        send = _ideal(self.operation(Kind.SEND), bit_per_s)
        return replace(self, send_between=send, link_between=link, link_between_kind=_ASSUMED)

    def at_arithmetic(self, tflops: float) -> Machine:
        """Return the machine with this arithmetic, in 10^12 operations a second, at every hidden size."""
        if tflops <= 0:
            raise ConfigError(f"tflops is {tflops}; allowed: above 0")
        return replace(self, flop_per_s=((1, tflops * 1e12),))

    def write(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def read(path: str | Path) -> Machine:
        """Read a file of ``write``. Raises ConfigError."""
        try:
            values = json.loads(Path(path).read_text())
            points = tuple((int(hidden), float(rate)) for hidden, rate in values.pop("flop_per_s"))
            curves: dict[str, Any] = {
                name: {key: curve(given["points"]) for key, given in values.pop(name).items()}
                for name in ("operations", "encode", "decode")
            }
            between = values.pop("send_between", None)
            return Machine(points, **curves, send_between=curve(between["points"]) if between else None, **values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} is no calibration of `evenflow mcbench calibrate`: {error}") from error


_ASSUMED = "assumed: its nominal rate, fixed times measured here"


def _ideal(measured: Curve, bit_per_s: float) -> Curve:
    """Return a link of this rate with the fixed time of a measured one."""
    return Curve(((0.0, measured.fixed_s), (1e9, measured.fixed_s + 8e9 / bit_per_s)))


def operation_name(kind: Kind, dtype: str) -> str:
    """Return the key of an operation: sums on the way cost by dtype, moving bytes does not."""
    sums = kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER)
    return f"{kind.value} {dtype}" if sums and dtype not in ("uint8", "float32") else kind.value
