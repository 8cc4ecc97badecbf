"""Single compressed sums by method, message size, link and number of ranks: predicted, then measured.

Predictions are made from a calibration of the same link before the measurement they are judged by, and kept apart from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from evenflow.base.errors import WireError
from evenflow.comm import Exchange, TorchCollective, get_compressor
from evenflow.comm.collectives.links import Link, interface_bytes, shaped
from evenflow.mcbench.predict.cost_model import exchange_s
from evenflow.mcbench.predict.machine import Machine
from evenflow.mcbench.runs.launch import launch
from evenflow.mcbench.runs.measure import expected_s

BREAK_EVEN_SPECS = ("none", "bf16", "int8-g32", "int4-g32", "q8", "topk:0.1", "powersgd:8", "srht:0.1", "ae:100")
BREAK_EVEN_ROWS = (4, 16, 64, 256, 1024, 2048, 8192)
WIDTH = 512


def predict_break_even(
    machine: Machine, world_size: int = 2, specs: Sequence[str] = BREAK_EVEN_SPECS, rows: Sequence[int] = BREAK_EVEN_ROWS
) -> dict[str, Any]:
    """Return what ``break_even`` should find, and when that was said. Raises ConfigError for what was not calibrated."""
    found = [
        {"spec": spec, "dense_bytes": 4 * n * WIDTH, "ms": 1e3 * exchange_s(machine, spec, n, WIDTH, world_size)}
        for n in rows
        for spec in specs
    ]
    return {
        "prediction": "break-even",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "link": machine.link,
        "link_kind": machine.link_kind,
        "world_size": world_size,
        "rows": found,
    }


def break_even(
    link: Link,
    world_size: int = 2,
    progress: Callable[[str], None] = lambda text: None,
    specs: Sequence[str] = BREAK_EVEN_SPECS,
    rows: Sequence[int] = BREAK_EVEN_ROWS,
) -> dict[str, Any]:
    """Measure one compressed sum by compressor and message size over real ranks. Raises WireError if the ranks fail."""

    def say(kind: str, value: Any) -> None:
        if kind == "exchange":
            progress(f"{value['spec']:>12} {value['dense_bytes']:>9} B dense: {value['ms']:.2f} ms")

    started = datetime.now(UTC).isoformat(timespec="seconds")
    launched = launch("break-even", {"specs": list(specs), "rows": list(rows)}, world_size, link, say)
    found = [record["value"] for record in launched.records if record["kind"] == "exchange"]
    if launched.failure or not found:
        raise WireError(f"break-even on {link.name}: {launched.failure or 'no measurements'}")
    kind = launched.link_kind
    return {
        "study": "break-even",
        "from": started,
        "link": link.name,
        "link_kind": kind,
        "world_size": world_size,
        "rows": found,
    }


def break_even_rank(payload: Mapping[str, Any], emit: Callable[[str, Any], None], link: Link, repeats: int = 20) -> None:
    """Measure as one rank: interleaved over compressors, so that a slow moment of the machine hits all of them."""
    group, interface = shaped(TorchCollective(), link), payload.get("interface", "")
    for rows in payload["rows"]:
        x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(group.rank))
        exchanges = {spec: Exchange("tp.forward", get_compressor(spec), group) for spec in payload["specs"]}
        times: dict[str, list[float]] = {spec: [] for spec in exchanges}
        seen = dict.fromkeys(exchanges, 0)
        for _ in range(repeats + 1):
            for spec, exchange in exchanges.items():
                group.barrier()
                before = interface_bytes(interface) if interface else None
                start = time.perf_counter()
                exchange.sum(x)
                times[spec].append(1e3 * (time.perf_counter() - start))
                group.barrier()
                after = interface_bytes(interface) if interface else None
                if before and after:
                    seen[spec] += sum(after) - sum(before)
        for spec, values in times.items():
            counted = exchanges[spec].ledger.by_site["tp.forward"].counted
            value = {
                "spec": spec,
                "dense_bytes": 4 * x.numel(),
                "sent_bytes": counted / (repeats + 1),
                # Both directions, headers, acknowledgements and one barrier included; both ranks of two send equally much.
                "interface_ratio": seen[spec] / (2 * counted) if seen[spec] else None,
                "ms": expected_s(values[1:]),
                "raw_ms": values[1:],
            }
            emit("exchange", value)


def measured_ranges(study: Mapping[str, Any], baseline: str = "none") -> dict[str, list[tuple[int, int | None]]]:
    """Return, by compressor, the ranges of dense message sizes in which it was faster than ``baseline``.

    Ends are sizes that were measured; (from, None): up to the largest of them.
    """
    ms = {(row["spec"], row["dense_bytes"]): row["ms"] for row in study["rows"]}
    sizes = sorted({size for _, size in ms})
    found: dict[str, list[tuple[int, int | None]]] = {}
    for spec in dict.fromkeys(row["spec"] for row in study["rows"]):
        if spec == baseline:
            continue
        ranges: list[tuple[int, int | None]] = []
        start: int | None = None
        for number, size in enumerate(sizes):
            wins = ms[spec, size] < ms[baseline, size]
            if wins and start is None:
                start = size
            if not wins and start is not None:
                ranges.append((start, sizes[number - 1]))
                start = None
        found[spec] = [*ranges, (start, None)] if start is not None else ranges
    return found


def break_even_points(study: Mapping[str, Any]) -> dict[str, int | None]:
    """Return, by compressor, the smallest measured dense message from which on it was always faster than none at all."""
    ms = {(row["spec"], row["dense_bytes"]): row["ms"] for row in study["rows"]}
    sizes = sorted({size for _, size in ms})
    points: dict[str, int | None] = {}
    for spec in dict.fromkeys(row["spec"] for row in study["rows"]):
        if spec == "none":
            continue
        slower = [size for size in sizes if ms[spec, size] >= ms["none", size]]
        beyond = [size for size in sizes if not slower or size > slower[-1]]
        points[spec] = beyond[0] if beyond else None
    return points
