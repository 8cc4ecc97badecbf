"""The page of the paper's two scaling figures, predicted from a calibration. Nothing measured is on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evenflow.mcbench.predict.cost_model import WEAK_SCALING, PaperModel, Shape, speed_up
from evenflow.mcbench.predict.machine import Machine
from evenflow.report.page import Page
from evenflow.report.plots import line_plot

SLOWER_BETWEEN = 10
"""How many times slower a link between nodes is assumed to be where a calibration has one link: the paper's 10 Gbit/s beside
PCIe within a node."""
MICROBATCHES_PER_NODE = 4
PAPER = "paper's formula"
PAPER_SHAPE = Shape(hidden=1024, layers=1)
"""TP 4, sequence 128, micro-batch 16, fp32 dense sums."""


def prediction_page(
    machine: Machine, specs: Sequence[str], hidden: Sequence[int], nodes: Sequence[int], base: Shape = PAPER_SHAPE
) -> Page:
    """Return the page for a calibrated machine. ``base`` has the ranks, sequence, micro-batch and dtype of every step on it."""
    flops = machine.flop_per_s[-1][1] / 1e9
    page = Page(
        "Predicted, not measured",
        f"From a calibration: {_links(machine)}, {flops:.0f} GFLOP/s per rank. Speed-up is dense time / compressed time of a "
        "training step, every sum and every boundary compressed; below 1 compression loses.",
    )
    widths = sorted(hidden)
    for n in sorted({min(nodes), max(nodes)}):
        page.section(
            f"Speed-up by hidden size on {n} node{'s' if n > 1 else ''}",
            f"TP {base.tp} within a node, sequence {base.sequence}, micro-batch {base.micro_batch}, "
            f"{str(base.dtype).removeprefix('torch.')} dense sums, one layer per node. Lines: the corrected model by "
            "compressor; the last is the paper's formula for its auto-encoder. Sums grow with the hidden size, arithmetic "
            "with its square, so the gain within a node vanishes.",
        )
        shapes = [replace(base, hidden=h, layers=n, nodes=n, microbatches=MICROBATCHES_PER_NODE * n) for h in widths]
        series = _series(machine, specs, shapes, [float(h) for h in widths])
        page.figure(line_plot(series, x_label="hidden size", y_label="predicted speed-up", is_log_x=True))
        page.table(["hidden", *series], [[h, *[series[name][1][i] for name in series]] for i, h in enumerate(widths)])
    _weak_scaling(
        page,
        machine,
        specs,
        hidden,
        nodes,
        "Weak scaling with one link" if machine.send_between is None else "Weak scaling",
        f"Hidden size, layers and nodes grow together as in Megatron's table: TP {base.tp} within a node, one pipeline "
        f"stage a node, {MICROBATCHES_PER_NODE} micro-batches a node.",
        base,
    )
    if machine.send_between is None:
        rate = 8 * machine.byte_per_s / SLOWER_BETWEEN
        slower = machine.at_rate_between(f"{rate / 1e6:.3g}mbit", rate)
        _weak_scaling(
            page,
            slower,
            specs,
            hidden,
            nodes,
            f"Weak scaling with a link between nodes {SLOWER_BETWEEN} times slower",
            "The calibration has one link; the paper has a fast one within nodes and a slow one between them. Here the rate "
            f"between nodes is assumed to be {slower.link_between} (`--link-between`: another): what the sums "
            "lose as layers grow, boundaries win as stages get short, and the gain levels off.",
            base,
        )
    return page


def weak_shape(hidden: int, layers: int, nodes: int, base: Shape = PAPER_SHAPE) -> Shape:
    """Return one row of the weak scaling table as a step."""
    return replace(base, hidden=hidden, layers=layers, nodes=nodes, microbatches=MICROBATCHES_PER_NODE * nodes)


def _weak_scaling(
    page: Page,
    machine: Machine,
    specs: Sequence[str],
    hidden: Sequence[int],
    nodes: Sequence[int],
    title: str,
    text: str,
    base: Shape,
) -> None:
    page.section(title, text)
    chosen = [row for row in WEAK_SCALING if min(nodes) <= row[2] <= max(nodes) and min(hidden) <= row[0] <= max(hidden)]
    series = _series(machine, specs, [weak_shape(*row, base) for row in chosen], [float(row[2]) for row in chosen])
    if len(chosen) > 1:
        page.figure(line_plot(series, x_label="nodes", y_label="predicted speed-up", is_log_x=True))
    page.table(
        ["hidden", "layers", "nodes", *series],
        [[*row, *[series[name][1][i] for name in series]] for i, row in enumerate(chosen)],
    )


def _series(machine: Machine, specs: Sequence[str], shapes: Sequence[Shape], x: Sequence[float]) -> dict[str, Any]:
    paper = PaperModel.of(machine)
    series: dict[str, Any] = {spec: (x, [speed_up(machine, shape, spec) for shape in shapes]) for spec in specs}
    return {**series, PAPER: (x, [paper.speed_up(shape) for shape in shapes])}


def _links(machine: Machine) -> str:
    within = f"{machine.link} ({machine.link_kind}), {8 * machine.byte_per_s / 1e9:.3g} Gbit/s achieved"
    if machine.send_between is None:
        return f"one link everywhere, {within}"
    rate = 8 / max(machine.boundary.unit_s, 1e-12) / 1e9
    return f"within nodes {within}; between nodes {machine.link_between} ({machine.link_between_kind}), {rate:.3g} Gbit/s"
