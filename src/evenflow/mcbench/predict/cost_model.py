"""How long a step takes, before it is run: the paper's formula, and a corrected one that counts bytes as the transports do.

Paper (tensor parallelism, per layer): T = alpha F + beta B s h; with an auto-encoder T = alpha F + c + gamma B s h,
F = 96 B s h^2 + 16 B s^2 h (forward and backward with full recomputation). Cluster of n stages and m micro-batches:
((m - 1) / n + 1) L T_layer + (n - 1) B s h / w, where w is the rate between nodes, which is not the rate inside one.

Corrected: F = 72 B s h^2 + 12 B s^2 h without recomputation; four collectives a layer, each counted by the transport's own
``operations``; encoding and decoding by how many messages the transport decodes; (m + n - 1) / m for the pipeline's bubble.
Everything here is predicted, never measured, and says so where it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evenflow.base.errors import ConfigError
from evenflow.comm import get_compressor, get_transport
from evenflow.comm.ledger import Kind, sent_bytes
from evenflow.mcbench.predict.machine import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One training step."""

    hidden: int
    layers: int
    sequence: int = 128
    micro_batch: int = 16
    tp: int = 4
    nodes: int = 1
    """Pipeline stages."""
    microbatches: int = 1
    dtype: torch.dtype = torch.float32
    """What the model computes in, and dense tensors travel in."""


def layer_flops(shape: Shape, is_recomputed: bool = False) -> float:
    """Return the operations of one layer's forward and backward pass over one micro-batch."""
    B, s, h = shape.micro_batch, shape.sequence, shape.hidden
    return (96 * B * s * h * h + 16 * B * s * s * h) if is_recomputed else (72 * B * s * h * h + 12 * B * s * s * h)


def ring_steps(kind: Kind, world_size: int) -> float:
    """Return how often the fixed time of an operation among two ranks is paid among ``world_size``, in a ring."""
    return 1.0 if kind is Kind.SEND else float(world_size - 1)


def coding_calls(transport: str, world_size: int) -> tuple[int, int, int]:
    """Return (calls to encode, calls to decode, share of the tensor in each, as 1 / share) of a rank in one exchange."""
    W = world_size
    return {"all-reduce": (1, 1, 1), "one-shot": (1, W, 1), "two-shot": (W + 1, 2 * W, W)}[transport]


def exchange_s(
    machine: Machine, rule: str, rows: int, width: int, world_size: int, dtype: torch.dtype = torch.float32
) -> float:
    """Return the predicted time of one compressed sum over ``world_size`` ranks of a tensor [rows, width] of ``dtype``.

    ``rule``: compressor[/transport].

    Raises ConfigError for a compressor or operation that was not calibrated.
    """
    if world_size == 1:
        return 0.0
    name, _, transport = rule.rpartition("/")
    spec = name or rule
    compressor = get_compressor(spec)
    chosen = get_transport(transport if name else None, compressor, world_size)
    carried = str(compressor.message_dtype(dtype)).removeprefix("torch.")
    time_s = 0.0
    for kind, size in chosen.operations(compressor, (rows, width), dtype, world_size):
        seconds = machine.operation(kind, carried)
        rounds = compressor.rounds if chosen.name == "all-reduce" else 1
        extra = rounds * ring_steps(kind, world_size) - 1
        time_s += seconds.at(sent_bytes(kind, size, world_size)) + extra * seconds.fixed_s
    if spec == "none":
        return time_s
    if spec not in machine.encode:
        raise ConfigError(f"{spec} was not calibrated; known: {', '.join(machine.encode)}")
    encoded, decoded, parts = coding_calls(chosen.name, world_size)
    n = rows * width / parts
    return time_s + encoded * machine.encode[spec].at(n) + decoded * machine.decode[spec].at(n)


def transfer_s(machine: Machine, spec: str, rows: int, width: int, dtype: torch.dtype = torch.float32) -> float:
    """Return the predicted time to send a tensor [rows, width] of ``dtype`` over a pipeline boundary."""
    size = get_compressor(spec).wire_plan((rows, width), dtype).payload_bytes
    time_s = machine.boundary.at(size)
    if spec == "none":
        return time_s
    return time_s + machine.encode[spec].at(rows * width) + machine.decode[spec].at(rows * width)


def sums_s(machine: Machine, shape: Shape, forward: str = "none", backward: str = "none") -> float:
    """Return the predicted time of a layer's four tensor-parallel sums: two forward, two backward."""
    rows = shape.micro_batch * shape.sequence
    return sum(2 * exchange_s(machine, spec, rows, shape.hidden, shape.tp, shape.dtype) for spec in (forward, backward))


def step_s(machine: Machine, shape: Shape, forward: str = "none", backward: str = "none", boundary: str = "none") -> float:
    """Return the corrected prediction of one training step (forward and backward of all micro-batches)."""
    compute = layer_flops(shape) / shape.tp / machine.flops_at(shape.hidden)
    m, n = shape.microbatches, shape.nodes
    layers = shape.layers / n * (compute + sums_s(machine, shape, forward, backward))
    rows = shape.micro_batch * shape.sequence
    transfer = 2 * transfer_s(machine, boundary, rows, shape.hidden, shape.dtype) if n > 1 else 0.0
    return (m + n - 1) * (layers + transfer)


def speed_up(machine: Machine, shape: Shape, spec: str) -> float:
    """Return dense time / compressed time with ``spec`` at every tensor-parallel sum and pipeline boundary."""
    return step_s(machine, shape) / step_s(machine, shape, spec, spec, spec)


@dataclass(frozen=True, slots=True)
class PaperModel:
    """The paper's fitted constants: seconds per operation, per element sent, per element coded; c for a small message."""

    alpha: float
    beta: float
    gamma: float
    c: float
    boundary: float
    """Seconds per element sent from node to node: 1 / w."""

    @staticmethod
    def of(machine: Machine, spec: str = "ae:100") -> PaperModel:
        """Derive the constants from a calibration: alpha from its largest layer, beta from the dense all-reduce."""
        coded = machine.encode[spec].unit_s + machine.decode[spec].unit_s
        fixed = machine.operation(Kind.ALL_REDUCE).fixed_s
        boundary = 4 * (machine.boundary.unit_s if machine.send_between else 1 / machine.byte_per_s)
        return PaperModel(1 / machine.flop_per_s[-1][1], 4 / machine.byte_per_s, coded, fixed, boundary)

    def layer_s(self, shape: Shape, is_compressed: bool) -> float:
        """Return the time of one layer."""
        m = shape.micro_batch * shape.sequence * shape.hidden
        compute = self.alpha * layer_flops(shape, is_recomputed=True) / shape.tp
        return compute + (self.c + self.gamma * m if is_compressed else self.beta * m)

    def total_s(self, shape: Shape, is_compressed: bool, code_width: int = 100) -> float:
        """Return the time of one step on ``shape.nodes`` nodes."""
        n, m = shape.nodes, shape.microbatches
        width = code_width if is_compressed else shape.hidden
        boundary = (n - 1) * shape.micro_batch * shape.sequence * width * self.boundary
        return ((m - 1) / n + 1) * shape.layers * self.layer_s(shape, is_compressed) + boundary

    def speed_up(self, shape: Shape) -> float:
        """Return dense time / compressed time."""
        return self.total_s(shape, False) / self.total_s(shape, True)


WEAK_SCALING = (
    (6144, 40, 1),
    (8192, 48, 2),
    (10240, 60, 4),
    (12288, 80, 8),
    (16384, 96, 16),
    (20480, 105, 35),
    (25600, 128, 64),
)
"""Hidden size, layers and nodes of Megatron's weak scaling (Narayanan et al. 2021), as the paper follows it."""


SIZES_OF_RANGES = tuple(int(4096 * 2 ** (i / 2)) for i in range(37))
"""Dense message sizes in bytes at which winning is looked for: 4 KiB to 1 GiB, two to an octave."""


def winning_ranges(
    machine: Machine,
    spec: str,
    world_size: int,
    width: int = 1024,
    dtype: torch.dtype = torch.float32,
    baseline: str = "none",
    sizes: Sequence[int] = SIZES_OF_RANGES,
) -> list[tuple[int, int | None]]:
    """Return the ranges of dense sizes, in bytes, in which ``spec`` is faster than ``baseline``; (from, None): on and on.

    Several ranges, because several things do not grow evenly: a fixed time, a burst that a link lets pass, the end of a cache.
    Both ends are sizes at which it wins. Rows of ``width`` elements of ``dtype``.
    """
    ranges: list[tuple[int, int | None]] = []
    start: int | None = None
    last = 0
    for size in sizes:
        rows = max(1, size // (width * dtype.itemsize))
        wins = exchange_s(machine, spec, rows, width, world_size, dtype) < exchange_s(
            machine, baseline, rows, width, world_size, dtype
        )
        if wins and start is None:
            start = size
        if not wins and start is not None:
            ranges.append((start, last))
            start = None
        last = size
    if start is not None:
        ranges.append((start, None))
    return ranges


def pays_from(machine: Machine, rule: str, world_size: int, width: int = 1024, dtype: torch.dtype = torch.float32) -> int:
    """Return the dense size, in bytes, from which on ``compressor[/transport]`` is faster than a dense sum.

    Raises ConfigError if it is not, at any size, or was not calibrated.
    """
    ranges = winning_ranges(machine, rule, world_size, width, dtype)
    if not ranges or ranges[-1][1] is not None:
        raise ConfigError(
            f"{rule} over {world_size} ranks on {machine.link} does not pay for large messages by this calibration"
        )
    return ranges[-1][0]


def gradients_s(
    machine: Machine,
    rule: str,
    num_parameters: int,
    world_size: int,
    dtype: torch.dtype = torch.float32,
    bucket_bytes: int = 25 << 20,
) -> float:
    """Return the predicted time to average the gradients of a model over data-parallel ranks, bucket by bucket.

    DistributedDataParallel's buckets hold ``bucket_bytes`` of ``dtype``. What overlaps with arithmetic is not
    taken off.
    """
    per_bucket = max(1024, bucket_bytes // dtype.itemsize)
    whole, rest = divmod(num_parameters, per_bucket)
    time_s = whole * exchange_s(machine, rule, per_bucket // 1024, 1024, world_size, dtype)
    return time_s + (exchange_s(machine, rule, max(1, rest // 1024), 1024, world_size, dtype) if rest else 0.0)


def errors_of(predicted: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, Any]:
    """Judge predictions: relative error of each, and whether both order the same where gaps exceed 5 %."""
    relative = {name: predicted[name] / measured[name] - 1 for name in measured if name in predicted}
    names: Sequence[str] = sorted(relative)
    swapped = [
        (a, b)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if abs(predicted[a] / predicted[b] - 1) > 0.05
        and abs(measured[a] / measured[b] - 1) > 0.05
        and (predicted[a] < predicted[b]) != (measured[a] < measured[b])
    ]
    return {"relative_error": relative, "within_25_percent": all(abs(e) <= 0.25 for e in relative.values()), "swapped": swapped}
