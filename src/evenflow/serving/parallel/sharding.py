"""Whether the ranks of a group divide an adapter's weights or repeat them, site by site, by what each costs in bytes.

Repeated (every rank holds A of qkv and gate_up, and B of o and down, whole): each rank reads (N - 1) / N r h more weights
for every row that brings an adapter of its own. Divided: they exchange rank-space vectors instead, a message per layer.
In bytes of memory traffic, for a batch of T such rows, m modules of rank r, hidden width h, elements of b bytes:

    repeated:  T m r h b (N - 1) / N
    divided:   T m r w 4 (N - 1) / N x wire_cost + message_cost          w = 1 for a gather, 2 for a sum

Both but the last term grow with T and r in the same way, so large batches of high ranks over wide models divide, and
small ones repeat. Under ``auto`` a site is divided if that is cheaper for a full batch of rank 16.
"""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.serving.core.shape import SITES, ModelShape
from evenflow.serving.core.shard import COLUMN_SITES

REFERENCE_RANK = 16


@dataclass(frozen=True, slots=True)
class Wire:
    """What sending costs, in bytes that the rank could have read from memory meanwhile."""

    byte: float
    """Cost of one byte on the wire: memory bandwidth divided by link bandwidth."""
    message: float
    """Cost of an empty message: memory bandwidth times the latency of the link."""


WIRES = {"cpu": Wire(byte=3.0, message=1.1e6), "cuda": Wire(byte=8.0, message=3e7)}
"""By device type. CPU: shared memory between two processes on two cores; a byte is written once and read twice, and a step
lost 0.11 ms per message beside 10 GB/s of memory (sharded against replicated in
benchmarks/results/tp_serving--epyc-2-cores.json). CUDA: 10 us beside 3 TB/s and 400 GB/s,
taken from data sheets, not measured here."""


def exchanged_sites(
    sharding: str, shape: ModelShape, world_size: int, itemsize: int, num_rows: int, wire: Wire
) -> tuple[str, ...]:
    """The sites whose LoRA is divided over the ranks. ``num_rows``: T. ``sharding``: auto, sharded, replicated."""
    if sharding == "replicated" or world_size == 1:
        return ()
    if sharding == "sharded":
        return tuple(SITES)
    return tuple(
        site
        for site in SITES
        if divided_bytes(site, world_size, num_rows, wire) < repeated_bytes(site, shape, world_size, itemsize, num_rows)
    )


def repeated_bytes(site: str, shape: ModelShape, world_size: int, itemsize: int, num_rows: int) -> float:
    """Bytes that a rank reads in one layer on top because the site's factor rows are repeated."""
    share = (world_size - 1) / world_size
    return num_rows * len(SITES[site]) * REFERENCE_RANK * shape.hidden_size * itemsize * share


def divided_bytes(site: str, world_size: int, num_rows: int, wire: Wire) -> float:
    """Cost of the site's exchange in one layer, in bytes of memory reading."""
    sent = num_rows * len(SITES[site]) * REFERENCE_RANK * 4 * (world_size - 1) / world_size
    return wire.message + wire.byte * sent * (1 if site in COLUMN_SITES else 2)


__all__ = ["REFERENCE_RANK", "WIRES", "Wire", "divided_bytes", "exchanged_sites", "repeated_bytes"]
