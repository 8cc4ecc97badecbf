"""Measure what the cost model needs: the link, the arithmetic, and each compressor's encode and decode on this machine.

Two local ranks do everything at the same time, as in training: what one rank measures, its peer is doing too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from evenflow.base.errors import WireError
from evenflow.comm import Collective, TorchCollective, get_compressor
from evenflow.comm.collectives.links import Link, shaped
from evenflow.comm.ledger import Kind, sent_bytes
from evenflow.mcbench.predict.cost_model import Shape, layer_flops
from evenflow.mcbench.predict.machine import Machine, curve, operation_name
from evenflow.mcbench.runs.launch import launch
from evenflow.mcbench.runs.measure import expected_s
from evenflow.mcbench.runs.run_versions import versions

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
SIZES = (4_096, 32_768, 131_072, 262_144, 1_048_576, 4_194_304)
"""Bytes of the messages that the link is measured with."""
ROWS = (4, 32, 128, 1024)
WIDTH = 1024
"""Tensors [rows, width] that compressors are measured with."""
POINT_S = 1.5
"""About how long a point of the link is measured; slow links are repeated less often."""
MEASURABLE_BIT_PER_S = 1e9
"""Faster links are assumed: gloo between local ranks reaches 2 to 3 Gbit/s, and queues of that rate are not kept busy."""
HIDDEN = (128, 256, 512, 1024)
"""Hidden sizes of the layers that arithmetic is measured with."""


def calibrate(
    link: Link,
    specs: Sequence[str] = DEFAULT_CALIBRATED,
    progress: Callable[[str], None] = lambda text: None,
    between: Link | None = None,
) -> Machine:
    """Measure this machine and link with two local ranks. Raises WireError if the ranks fail.

    ``link`` joins the ranks of a node, ``between`` the nodes (messages over pipeline boundaries); None: one link for both.
    Local ranks reach 2 to 3 Gbit/s without any shaping. A faster link cannot be measured with them, so its nominal rate is
    assumed (see ``Machine.at_rate``) and the result says so.
    """
    for spec in specs:
        get_compressor(spec)  # a wrong name is refused before anything starts
    points: dict[str, list[tuple[float, float]]] = {}
    flops: list[tuple[int, float]] = []

    def note(kind: str, value: Any) -> None:
        if kind == "flops":
            flops.append((value["hidden"], value["flop_per_s"]))
            progress(f"layer of hidden size {value['hidden']}: {value['flop_per_s'] / 1e9:.1f} GFLOP/s per rank")
            return
        points.setdefault(value["name"], []).append((value["units"], value["seconds"]))
        if value["is_last"]:
            seconds = curve(points[value["name"]])
            progress(f"{value['name']}: {1e6 * seconds.fixed_s:.0f} us, then {1e9 * seconds.unit_s:.2f} ns per {value['unit']}")

    measured = _measurable(link)
    launched = launch("calibrate", {"specs": list(specs)}, 2, measured, note)
    if launched.failure or not flops:
        raise WireError(f"calibration of {link.name}: {launched.failure or 'no measurements'}")
    curves = {name: curve(values) for name, values in points.items()}
    coded = {way: {spec: curves[f"{way} {spec}"] for spec in specs} for way in ("encode", "decode")}
    operations = {name: seconds for name, seconds in curves.items() if not name.startswith(("encode ", "decode "))}
    machine = Machine(
        tuple(flops), operations, coded["encode"], coded["decode"], measured.name, launched.link_kind, versions=versions()
    )
    if link.bit_per_s is not None and measured != link:
        progress(f"{link.name} is more than local ranks reach: its rate is assumed, fixed times are measured")
        machine = machine.at_rate(link.name, link.bit_per_s)
    return machine if between is None else _with_between(machine, between, progress)


def _measurable(link: Link) -> Link:
    is_fast = link.bit_per_s is not None and link.bit_per_s > MEASURABLE_BIT_PER_S
    return Link.parse("unlimited") if is_fast else link


def _with_between(machine: Machine, between: Link, progress: Callable[[str], None]) -> Machine:
    """Return the machine with messages between nodes as measured over another link, or assumed if that is too fast."""
    if between.bit_per_s is not None and _measurable(between) != between:
        progress(f"{between.name} between nodes is more than local ranks reach: its rate is assumed")
        return machine.at_rate_between(between.name, between.bit_per_s)
    launched = launch("calibrate-between", {}, 2, between)
    points = [(r["value"]["units"], r["value"]["seconds"]) for r in launched.records if r["kind"] == "point"]
    if launched.failure or not points:
        raise WireError(f"calibration of {between.name}: {launched.failure or 'no measurements'}")
    send = curve(points)
    progress(f"send between nodes: {1e6 * send.fixed_s:.0f} us, then {1e9 * send.unit_s:.2f} ns per byte")
    return replace(machine, send_between=send, link_between=between.name, link_between_kind=launched.link_kind)


def calibrate_rank(payload: Mapping[str, Any], emit: Callable[[str, Any], None], link: Link, repeats: int = 32) -> None:
    """Measure, as one of the ranks."""
    group = TorchCollective()
    _arithmetic(group, emit)
    _operations(shaped(group, link), emit, repeats)
    for spec in payload["specs"]:
        _coding(spec, group, emit)


def calibrate_between_rank(payload: Mapping[str, Any], emit: Callable[[str, Any], None], link: Link, repeats: int = 32) -> None:
    """Measure messages over another link, as one of the ranks."""
    _operations(shaped(TorchCollective(), link), emit, repeats, (Kind.SEND,))


def _operations(group: Collective, emit: Callable[[str, Any], None], repeats: int, kinds: Sequence[Kind] = tuple(Kind)) -> None:
    W = group.world_size
    known: list[tuple[Kind, torch.dtype, Callable[[Tensor], Tensor]]] = [
        (Kind.ALL_REDUCE, torch.float32, group.all_reduce),
        (Kind.ALL_REDUCE, torch.bfloat16, group.all_reduce),
        (Kind.REDUCE_SCATTER, torch.float32, group.reduce_scatter),
        (Kind.ALL_GATHER, torch.uint8, group.all_gather),
        (Kind.ALL_TO_ALL, torch.uint8, group.all_to_all),
        (Kind.SEND, torch.uint8, lambda x: _there_and_back(group, x)),
    ]
    for kind, dtype, operation in [entry for entry in known if entry[0] in kinds]:
        for size in SIZES:
            x = torch.zeros(W, size // dtype.itemsize // W, dtype=dtype)
            times: list[float] = []
            count = repeats
            while len(times) < count:
                group.barrier()
                start = time.perf_counter()
                operation(x)
                # Both ranks send and receive equally much, so the operation ends when the last bytes have come.
                times.append(time.perf_counter() - start)
                if len(times) == 2:
                    slowest_s = float(group.all_gather(torch.tensor(times[-1])).max())
                    count = max(5, min(repeats, int(POINT_S / slowest_s)))
            ways = 2 if kind is Kind.SEND else 1
            value = {"units": sent_bytes(kind, size, W), "seconds": expected_s(times[2:]) / ways}
            name = operation_name(kind, str(dtype).removeprefix("torch."))
            emit("point", {"name": name, "unit": "byte", "is_last": size == SIZES[-1], **value})


def _there_and_back(group: Collective, x: Tensor) -> Tensor:
    """Time a message at the receiver: sending ends when the bytes are in a socket buffer."""
    if group.rank == 0:
        group.send(x, 1)
        return group.receive(torch.empty_like(x), 1)
    received = group.receive(torch.empty_like(x), 0)
    group.send(received, 0)
    return received


@torch.no_grad()
def _coding(spec: str, group: Collective, emit: Callable[[str, Any], None]) -> None:
    for rows in ROWS:
        group.barrier()
        encode_s, decode_s = coding_s(spec, rows)
        for way, seconds in (("encode", encode_s), ("decode", decode_s)):
            value = {"units": rows * WIDTH, "seconds": seconds}
            emit("point", {"name": f"{way} {spec}", "unit": "element", "is_last": rows == ROWS[-1], **value})


@torch.no_grad()
def coding_s(spec: str, rows: int, width: int = WIDTH, repeats: int = 7) -> tuple[float, float]:
    """Return median seconds of one call to encode and one to decode a fp32 tensor [rows, width]."""
    compressor = get_compressor(spec)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    encode, decode = [], []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        message = compressor.encode(x)
        middle = time.perf_counter()
        compressor.decode(message, x.shape, x.dtype)
        end = time.perf_counter()
        encode.append(middle - start)
        decode.append(end - middle)
    return median(encode[2:]), median(decode[2:])


def _arithmetic(group: Collective, emit: Callable[[str, Any], None], repeats: int = 8) -> None:
    for hidden in HIDDEN:
        shape = Shape(hidden=hidden, layers=1, sequence=128, micro_batch=max(1, 4096 // hidden), tp=1)
        layer = nn.TransformerEncoderLayer(
            hidden, max(2, hidden // 64), 4 * hidden, dropout=0.0, activation="gelu", batch_first=True
        )
        x = torch.randn(shape.micro_batch, shape.sequence, hidden, requires_grad=True)
        times = []
        for _ in range(repeats):
            group.barrier()
            start = time.perf_counter()
            layer(x).sum().backward()
            times.append(time.perf_counter() - start)
        emit("flops", {"hidden": hidden, "flop_per_s": layer_flops(shape) / median(times[2:])})
