"""Tables for people: the same rows as HTML and for the terminal, with numbers set the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
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


def table_terminal(headers: Sequence[str], rows: Sequence[Sequence[Cell]], title: str = "") -> TerminalTable:
    """The same table for ``rich.console.Console.print``. Raises ValueError for a row of another length."""
    return TerminalTable(headers, rows, title)


class TerminalTable:
    """A table for a terminal of any width: figures are never cut or broken over lines.

    Where the columns do not fit beside each other, the table is printed in several parts, one below the other; each begins
    with the first column again, which names the rows. Text other than the first column may be broken over lines.
    """

    def __init__(self, headers: Sequence[str], rows: Sequence[Sequence[Cell]], title: str = "") -> None:
        self.headers, self.title = list(headers), title
        self.numeric = _numeric_columns(headers, rows)
        self.cells = [[format_cell(value) for value in row] for row in rows]

    def parts(self, width: int) -> list[list[int]]:
        """Return the columns of each part that is at most ``width`` characters wide, as far as one column allows it."""
        needed = [self._needed(column) for column in range(len(self.headers))]
        parts: list[list[int]] = [[0]] if needed else []
        for column in range(1, len(needed)):
            used = sum(needed[c] + _GAP for c in parts[-1])
            if len(parts[-1]) > 1 and used + needed[column] > width - _EDGES:
                parts.append([0])
            parts[-1].append(column)
        return parts

    def _needed(self, column: int) -> int:
        """Return the characters that a column cannot do without: its longest figure, or its longest word."""
        pieces = self.headers[column].split() or [""]
        for text in (row[column] for row in self.cells):
            is_whole = column == 0 or self.numeric[column] or _is_figure(text)
            pieces += text.splitlines() if is_whole else text.split()
        return max(cell_len(piece) for piece in pieces)

    def _widths(self, columns: Sequence[int], width: int) -> list[int]:
        """Return how wide each column of a part is: what it needs, and what is left for those that would like more."""
        given = [self._needed(c) for c in columns]
        left = width - _EDGES - sum(given) - _GAP * (len(given) - 1)
        for position, c in enumerate(columns):
            texts = [self.headers[c], *(row[c] for row in self.cells)]
            natural = max(cell_len(line) for text in texts for line in text.splitlines() or [""])
            more = max(0, min(left, natural - given[position]))
            given[position] += more
            left -= more
        return given

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, columns in enumerate(self.parts(options.max_width)):
            title = self.title if number == 0 else f"{self.title} (continued)" if self.title else ""
            table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            for c, width in zip(columns, self._widths(columns, options.max_width), strict=True):
                justify: Literal["left", "right"] = "right" if self.numeric[c] else "left"
                table.add_column(_escaped(self.headers[c]), justify=justify, width=width)
            for row in self.cells:
                table.add_row(*(_escaped(row[c]) for c in columns))
            yield table


_GAP, _EDGES = 3, 2
"""Characters between two columns, and at both edges of a table together."""


def _is_figure(text: str) -> bool:
    """Return whether a short text is a figure with its unit or spread, like ``1,234 ± 5``: it is not broken over lines."""
    return len(text) <= 24 and text.lstrip("+-−≤≥<>~x× ")[:1].isdigit()


def _escaped(text: str) -> str:
    """Return text in which rich sees no markup."""
    return text.replace("[", "\\[")


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
