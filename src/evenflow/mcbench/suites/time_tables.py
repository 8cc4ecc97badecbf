"""The paper's time-breakdown tables: one for each task, layout and link, a row for each setting, milliseconds by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenflow.mcbench.suites.labels import label, layout_of
from evenflow.report.page import Page
from evenflow.report.plots import bar_plot

Result = Mapping[str, Any]

PARTS = (
    ("forward", "forward"),
    ("backward", "backward"),
    ("optimizer", "optimizer"),
    ("pipeline", "pipeline"),
    ("waiting", "waiting"),
    ("encode", "encode"),
    ("decode", "decode"),
    ("tp communication", "TP comm."),
    ("pp communication", "PP comm."),
    ("dp communication", "DP comm."),
)
"""(part of the stopwatch, heading), in the order of the paper's tables 3 and 4."""


def time_rows(results: Sequence[Result]) -> tuple[list[str], list[list[Any]]]:
    """Return (headings, rows) of results that share task, layout and link: setting, parts that occur, total, against dense.

    Milliseconds of one iteration. The total is the median of whole iterations without a stopwatch; parts are from a second
    pass with one. The last column is dense time / this time, None without a dense run.
    """
    present = [(part, name) for part, name in PARTS if any(part in r["ms_per_iteration"]["profiled"] for r in results)]
    dense = next((r for r in results if r["parameters"]["compress"] in ("none", "sp=none")), None)
    rows = []
    for result in sorted(results, key=lambda r: (r is not dense, label(r))):
        ms = result["ms_per_iteration"]
        faster = dense["ms_per_iteration"]["total"] / ms["total"] if dense is not None else None
        rows.append([label(result), *[ms["profiled"].get(part) for part, _ in present], ms["total"], faster])
    return ["setting", *[name for _, name in present], "total", "speed-up"], rows


def add_times(page: Page, timed: Sequence[Result]) -> None:
    """Add the section, with a table and a plot for each task, layout and link."""
    page.section(
        "Time",
        "Real ranks, milliseconds of one iteration. Total: the median of whole iterations without a stopwatch. The parts come "
        "from a second pass with one and with a barrier before each collective, so their sum is larger. Speed-up: dense "
        "total / this total.",
    )
    groups: dict[tuple[str, str, str, str], list[Result]] = {}
    for result in timed:
        p, link = result["parameters"], result["link"]
        model = f" ({p['model']})" if p["model"] else ""
        groups.setdefault((p["task"] + model, layout_of(result), link["nominal"], link["kind"]), []).append(result)
    for (task, layout, nominal, kind), results in groups.items():
        reached = [r["achieved_gbit_s"] for r in results if r["achieved_gbit_s"]]
        rate = f"; {min(reached):.2g} to {max(reached):.2g} Gbit/s achieved" if reached else ""
        threads = results[0]["parameters"].get("threads", 1)
        page.section(f"{task}, {layout}, {nominal}", f"Link made by: {kind}{rate}; {threads} compute thread(s) a rank.")
        page.table(*time_rows(results))
        bars = {label(r)[:28]: {"ms per iteration": r["ms_per_iteration"]["total"]} for r in results[:12]}
        page.figure(bar_plot(bars, y_label="ms per iteration"))
