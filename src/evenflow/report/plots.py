"""Plots: matplotlib figures that read well in light, in dark and on paper, and their SVG text.

Only ``Figure`` objects are used, never pyplot: no global state, no display. Ink is drawn in one
marker colour that ``figure_svg`` turns into the page's text colour.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evenflow.base.errors import ConfigError

Series = tuple[Sequence[float], Sequence[float]]
"""x values and y values of one line, equally many."""

PALETTE = ("#2f7de1", "#e8702a", "#22a06b", "#b44ac0", "#d9a514", "#12a5b5", "#e2483d", "#8270db", "#7a9a1f", "#d14f94")
"""Distinguishable on white and on near-black."""
QUIET = "#8b95a1"
"""For lines that are context and for clients beyond the palette."""

_INK = "#0a0b0c"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "evenflow",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": QUIET,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, in order; names beyond the palette share the quiet grey."""
    return {name: PALETTE[i] if i < len(PALETTE) else QUIET for i, name in enumerate(names)}


def line_plot(
    series: Mapping[str, Series],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    colour_by_name: Mapping[str, str] | None = None,
    is_step: bool = False,
    is_log_x: bool = False,
    is_log_y: bool = False,
    size: tuple[float, float] = (9.0, 3.6),
) -> Figure:
    """Lines over a shared x axis, the legend beside them. A step line holds its value until the next x."""
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        handles = _draw_lines(axes, series, colour_by_name or colours(list(series)), is_step)
        if is_log_x:
            axes.set_xscale("log")
        if is_log_y:
            axes.set_yscale("log")
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        if len(handles) > 1:
            axes.legend(handles=handles.values(), labels=handles.keys(), loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure


def cumulative_service_plot(
    service_by_client: Mapping[str, Series],
    *,
    title: str = "",
    y_label: str = "service received",
    x_label: str = "time (s)",
    size: tuple[float, float] = (9.0, 3.6),
) -> Figure:
    """Cumulative service over time, one line per client (x in seconds, y cumulative).

    Only the ten clients with the most service at the end are coloured and named; the others are drawn grey.
    """
    return line_plot(order_by_last(service_by_client), x_label=x_label, y_label=y_label, title=title, is_step=False, size=size)


def small_multiples(
    panels: Mapping[str, Mapping[str, Series]],
    *,
    x_label: str,
    y_label: str,
    colour_by_name: Mapping[str, str] | None = None,
    columns: int = 2,
    is_step: bool = False,
    panel_size: tuple[float, float] = (4.6, 2.6),
) -> Figure:
    """One panel per entry, all with the same axes and the same colours: what differs is the data."""
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    colour = dict(colour_by_name or colours(names))
    columns = max(1, min(columns, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    with rc_context(_STYLE):
        figure = Figure(figsize=(panel_size[0] * columns, panel_size[1] * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        handles: dict[str, object] = {}
        for i, axes in enumerate(grid.flat):
            if i >= len(panels):
                axes.set_visible(False)
                continue
            if i + columns >= len(panels):  # nothing below it: it bears the labels of the shared axis
                axes.tick_params(labelbottom=True)
            title, series = list(panels.items())[i]
            handles.update(_draw_lines(axes, series, colour, is_step))
            axes.set_title(title)
        figure.supxlabel(x_label, fontsize=9.5)
        figure.supylabel(y_label, fontsize=9.5)
        if len(handles) > 1:
            figure.legend(handles=list(handles.values()), labels=list(handles), loc="outside right upper")
        return figure


def bar_plot(
    values: Mapping[str, Mapping[str, float]],
    *,
    y_label: str,
    title: str = "",
    is_log_y: bool = False,
    size: tuple[float, float] = (9.0, 3.2),
) -> Figure:
    """Groups of bars: ``values[group][bar]``; a bar that a group lacks, or that is NaN, leaves a gap."""
    bars = list(dict.fromkeys(bar for group in values.values() for bar in group))
    colour = colours(bars)
    width = 0.8 / max(1, len(bars))
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for j, bar in enumerate(bars):
            places = [i + (j - (len(bars) - 1) / 2) * width for i in range(len(values))]
            axes.bar(
                places, [group.get(bar, math.nan) for group in values.values()], width * 0.92, label=bar, color=colour[bar]
            )
        if is_log_y:
            axes.set_yscale("log")
        axes.set_xticks(range(len(values)), list(values))
        axes.grid(visible=False, axis="x")
        axes.set(ylabel=y_label, title=title)
        if len(bars) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure


def interval_plot(values: Mapping[str, tuple[float, float | None]], *, x_label: str, title: str = "") -> Figure:
    """A dot and its interval for each name, the first on top: ``values[name]`` is (middle, half width or None)."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 0.9 + 0.24 * len(values)), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(values))
        axes.axvline(0.0, color=QUIET, linewidth=1.0)
        axes.errorbar(
            [middle for middle, _ in values.values()],
            places,
            xerr=[half or 0.0 for _, half in values.values()],
            fmt="o",
            color=PALETTE[0],
            markersize=4,
            linewidth=1.4,
        )
        axes.set_yticks(places, list(values))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=x_label, title=title)
        return figure


def order_by_last(series: Mapping[str, Series]) -> dict[str, Series]:
    """The same lines, the one that ends highest first."""
    return dict(sorted(series.items(), key=lambda item: -(item[1][1][-1] if len(item[1][1]) else 0.0)))


def figure_svg(figure: Figure, label: str = "") -> str:
    """The figure as SVG text to put into a page; its ink becomes the page's text colour."""
    stream = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label, quote=True)}" ', 1)


def write_png(figure: Figure, path: str | os.PathLike[str], dots_per_inch: int = 150) -> None:
    """Write the figure as a PNG on white. Raises ConfigError with the path and the reason."""
    try:
        figure.savefig(path, format="png", dpi=dots_per_inch, facecolor="white")
    except OSError as error:
        raise ConfigError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error


def _draw_lines(axes: Axes, series: Mapping[str, Series], colour: Mapping[str, str], is_step: bool) -> dict[str, object]:
    """Draw, the first line on top; the handles for a legend, grey lines under one name."""
    handles: dict[str, object] = {}
    for name, (x, y) in reversed(list(series.items())):
        tint = colour.get(name, QUIET)
        if len(x) != len(y):
            raise ValueError(f"line {name!r} has {len(x)} x values and {len(y)} y values")
        is_quiet = tint == QUIET
        (line,) = axes.plot(
            list(x),
            list(y),
            color=tint,
            linewidth=0.9 if is_quiet else None,
            alpha=0.6 if is_quiet else None,
            drawstyle="steps-post" if is_step else "default",
        )
        handles["others" if is_quiet else name] = line
    return {name: handles[name] for name in [*series, "others"] if name in handles}
