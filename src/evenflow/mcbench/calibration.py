"""Measure what the cost model needs: the link, the arithmetic, and each compressor's encode and decode on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from evenflow.base.errors import WireError
from evenflow.comm import TorchCollective, get_compressor
from evenflow.comm.ledger import Kind, sent_bytes
from evenflow.comm.links import Link, shaped
from evenflow.mcbench.cost_model import Machine
from evenflow.mcbench.launch import launch

DEFAULT_CALIBRATED = (
    "bf16",
    "ae:100",
    "topk:0.1",
    "randomk-shared:0.1",
    "q8",
    "q4",
    "powersgd:50",
    "int8-g32",
    "int6-g32",
    "int4-g32",
    "fp8-g128",
    "mxfp4",
    "hadamard-int4",
    "spike-int2",
    "srht:0.1",
    "subspace:64",
)
SIZES = (16_384, 131_072, 1_048_576, 4_194_304)
"""Bytes of the dense messages that the link is measured with."""


def calibrate(
    link: Link, specs: Sequence[str] = DEFAULT_CALIBRATED, progress: Callable[[str], None] = lambda text: None
) -> Machine:
    """Measure this machine and link with two local ranks. Raises WireError if the ranks fail."""
    from evenflow.mcbench.run import versions

    launched = launch("calibrate", {}, 2, link)
    points = [record["value"] for record in launched.records if record["kind"] == "point"]
    if launched.failure or not points:
        raise WireError(f"calibration of {link.name}: {launched.failure or 'no measurements'}")
    operation_s, byte_per_s = fit([(p["sent"], p["seconds"]) for p in points])
    progress(
        f"link {link.name} ({launched.link_kind}): {8 * byte_per_s / 1e9:.2f} Gbit/s, {1e6 * operation_s:.0f} us per collective"
    )
    flop = next(record["value"] for record in launched.records if record["kind"] == "flop_per_s")
    progress(f"matrix products: {flop / 1e9:.1f} GFLOP/s per rank")
    encode, decode = {}, {}
    for spec in specs:
        encode[spec], decode[spec] = coding_s(spec)
        progress(f"{spec}: encode {1e9 * encode[spec]:.2f}, decode {1e9 * decode[spec]:.2f} ns per element")
    return Machine(flop, operation_s, byte_per_s, encode, decode, link.name, launched.link_kind, versions())


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return (fixed seconds, bytes per second) of seconds = fixed + sent / rate, least squares of relative errors."""
    sent, seconds = (np.array(column) for column in zip(*points))
    matrix = np.stack([1 / seconds, sent / seconds], axis=1)
    (fixed, per_byte), *_ = np.linalg.lstsq(matrix, np.ones(len(seconds)), rcond=None)
    return max(0.0, float(fixed)), 1 / max(float(per_byte), 1e-15)


def coding_s(spec: str, rows: int = 512, width: int = 1024, repeats: int = 7) -> tuple[float, float]:
    """Return median seconds per element to encode and to decode a fp32 tensor, on one thread."""
    compressor = get_compressor(spec)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    encode, decode = [], []
    try:
        with torch.no_grad():
            for _ in range(repeats + 2):
                start = time.perf_counter()
                message = compressor.encode(x)
                middle = time.perf_counter()
                compressor.decode(message, x.shape, x.dtype)
                end = time.perf_counter()
                encode.append(middle - start)
                decode.append(end - middle)
    finally:
        torch.set_num_threads(threads)
    return median(encode[2:]) / x.numel(), median(decode[2:]) / x.numel()


def calibrate_rank(emit: Callable[[str, Any], None], link: Link, repeats: int = 9) -> None:
    """Measure, as one of the ranks: times of collectives by size, and the rate of matrix products with all ranks at work."""
    group = shaped(TorchCollective(), link)
    W = group.world_size
    operations: list[tuple[Kind, Callable[[torch.Tensor], torch.Tensor]]] = [
        (Kind.ALL_REDUCE, group.all_reduce),
        (Kind.ALL_GATHER, group.all_gather),
        (Kind.ALL_TO_ALL, group.all_to_all),
    ]
    for size in SIZES:
        for kind, operation in operations:
            x = torch.zeros(W, size // 4 // W)
            times = []
            for _ in range(repeats):
                group.barrier()
                start = time.perf_counter()
                operation(x)
                # Sending ends when the bytes are in a socket buffer; receiving at the slowest rank is what counts.
                group.barrier()
                times.append(time.perf_counter() - start)
            emit("point", {"kind": kind.value, "sent": sent_bytes(kind, size, W), "seconds": median(times[2:])})
    a, b = torch.randn(256, 512), torch.randn(512, 1024)
    times = []
    for _ in range(repeats):
        group.barrier()
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        times.append((time.perf_counter() - start) / 10)
    emit("flop_per_s", 2 * a.shape[0] * a.shape[1] * b.shape[1] / median(times))
