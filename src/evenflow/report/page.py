"""One self-contained HTML page: sections, text, tables and SVG figures. No network, no script.

Readable in light and dark and on paper. It lays out what it is given and knows nothing of what a
number means; tables.py formats numbers and plots.py draws.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from evenflow.base.errors import ConfigError
from evenflow.report.plots import figure_svg
from evenflow.report.tables import Cell, format_cell, table_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1d2530; --soft: #5b6675; --line: #d9dee5; --paper: #ffffff; --band: #f5f7fa; --accent: #1f6feb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #9aa6b5; --line: #343c47; --paper: #14181e; --band: #1b2028; --accent: #6aa6ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
header { border-bottom: 1px solid var(--line); margin-bottom: 1.5rem; padding-bottom: 1rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.6rem 0 .6rem; }
header p { margin: 0; color: var(--soft); }
p { max-width: 46rem; margin: .5rem 0 .9rem; }
nav { margin: .8rem 0 0; font-size: .9rem; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
caption { caption-side: top; text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); border-bottom-width: 2px; vertical-align: bottom; }
th.number, td.number { text-align: right; white-space: nowrap; padding-left: .6rem; }
td:first-child { white-space: nowrap; }
td pre { margin: 0; }
tbody tr:hover { background: var(--band); }
figure { margin: 1.4rem 0; }
figure svg { width: 100%; height: auto; max-width: 64rem; display: block; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; max-width: 52rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--band); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.2; font-weight: 650; }
.tile span { color: var(--soft); font-size: .85rem; }
pre { background: var(--band); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto;
  font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media screen and (max-width: 48rem) {
  main { padding: 1.2rem 1rem 3rem; } figure .scroll { margin: 0; } figure svg { min-width: 44rem; }
  .scroll { border-right: 2px solid var(--line); } table { border-collapse: separate; border-spacing: 0; }
  .scroll td:first-child, .scroll th:first-child { position: sticky; left: 0; background: var(--paper); }
}
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --band: #f4f4f4; --accent: #000; }
  main { max-width: none; padding: 0; } nav { display: none; } body { font-size: 10.5pt; }
  .scroll { overflow: visible; } table { font-size: .8rem; } th, td { padding-right: .5rem; }
  figure, table, .tile, pre { break-inside: avoid; } h2 { break-after: avoid; }
}
"""


class Page:
    """A page built from the top down; every method returns the page, so that calls can be chained.

    Text is plain text: it is escaped, and `backticks` become code. Nothing is written before ``write``.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._subtitle = subtitle
        self._sections: list[str] = []
        self._body: list[str] = []

    def section(self, title: str, text: str = "") -> Page:
        """Start a section; it is listed at the top of the page."""
        self._sections.append(title)
        self._body.append(f'<h2 id="section-{len(self._sections)}">{escape(title)}</h2>')
        return self.text(text) if text else self

    def text(self, text: str) -> Page:
        """Add paragraphs; an empty line starts a new one."""
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            self._body.append(f"<p>{_inline(paragraph)}</p>")
        return self

    def tiles(self, tiles: Sequence[tuple[str, Cell, str]]) -> Page:
        """Add the figures a reader should see first: (label, value, note) each."""
        cells = "".join(
            f'<div class="tile"><span>{_inline(label)}</span><b>{escape(format_cell(value))}</b>'
            f"<span>{_inline(note)}</span></div>"
            for label, value, note in tiles
        )
        self._body.append(f'<div class="tiles">{cells}</div>')
        return self

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "") -> Page:
        """Add a table; columns whose cells are all numbers are set right. Raises ValueError for a ragged row."""
        self._body.append(f'<div class="scroll">{table_html(headers, rows, caption)}</div>')
        return self

    def figure(self, figure: Figure | str, caption: str = "") -> Page:
        """Add a matplotlib figure, or SVG text, with its caption."""
        svg = figure if isinstance(figure, str) else figure_svg(figure, label=caption)
        note = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
        self._body.append(f'<figure><div class="scroll">{svg}</div>{note}</figure>')
        return self

    def preformatted(self, text: str) -> Page:
        """Add text whose line breaks matter: a command, a sample of output."""
        self._body.append(f"<pre>{escape(text)}</pre>")
        return self

    def html(self) -> str:
        """The whole page."""
        links = "".join(f'<a href="#section-{i}">{escape(title)}</a>' for i, title in enumerate(self._sections, 1))
        nav = f"<nav>{links}</nav>" if len(self._sections) > 1 else ""
        subtitle = f"<p>{_inline(self._subtitle)}</p>" if self._subtitle else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self._title)}</title><style>{_STYLE}</style></head>\n<body><main>"
            f"<header><h1>{escape(self._title)}</h1>{subtitle}{nav}</header>\n"
            + "\n".join(self._body)
            + "\n</main></body></html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page to ``path``, whole or not at all. Raises ConfigError with the path and the reason."""
        write_whole(path, self.html().encode())


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never half of it.

    Raises ConfigError with the path and the reason (no folder, no permission, full disk).
    """
    target = Path(path)
    temporary = ""
    try:
        if target.exists() and not target.is_file():  # a device or a pipe: there is nothing to replace
            with target.open("wb") as stream:
                stream.write(data)
            return
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as stream:
            temporary = stream.name
            stream.write(data)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise ConfigError(f"cannot write {target}: {error.strerror or error}") from error


def _inline(text: str) -> str:
    """Escaped text in which `x` is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
