"""Tables for people: the same rows as HTML and for the terminal, with numbers set the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from rich.box import SIMPLE_HEAD
from rich.table import Table

Cell = str | int | float | bool | None


def format_cell(value: Cell) -> str:
    """A number with as many digits as a reader can use; None and NaN as a dash; text as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.1f}"
    if size >= 1 or size == 0:
        return f"{value:.2f}"
    return f"{value:.3g}" if size < 0.9995 else f"{value:.2f}"


def table_html(headers: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "") -> str:
    """An HTML table. A cell of several lines keeps them. Raises ValueError for a row of another length."""
    numeric = _numeric_columns(headers, rows)
    mark = [' class="number"' if is_number else "" for is_number in numeric]

    def cell(value: Cell) -> str:
        text = escape(format_cell(value))
        return f"<pre>{text}</pre>" if "\n" in text else text

    head = "".join(f"<th{mark[i]}>{escape(text)}</th>" for i, text in enumerate(headers))
    body = "".join(
        "<tr>" + "".join(f"<td{mark[i]}>{cell(value)}</td>" for i, value in enumerate(row)) + "</tr>" for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def table_terminal(headers: Sequence[str], rows: Sequence[Sequence[Cell]], title: str = "") -> Table:
    """The same table for ``rich.console.Console.print``. Raises ValueError for a row of another length."""
    numeric = _numeric_columns(headers, rows)
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for i, (name, is_number) in enumerate(zip(headers, numeric, strict=True)):
        table.add_column(name, justify="right" if is_number else "left", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(format_cell(value).replace("[", "\\[") for value in row))
    return table


def _numeric_columns(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[bool]:
    """Which columns hold only numbers (and gaps)."""
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells and the table {len(headers)} columns: {list(row)!r}")
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(headers)
    return [
        any(isinstance(value, int | float) for value in column)
        and all(value is None or isinstance(value, int | float) for value in column)
        for column in columns
    ]
