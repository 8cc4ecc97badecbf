"""What the README shows of a demo: the report's first plot, for light and for dark pages, and the table (``make picture``)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
INK = {"light": "#1f2328", "dark": "#e6edf3"}
"""Colour of text and axes. The report lets the page decide; a picture in a README has no page to ask."""

BEGIN = "<!-- demo: begin (written by `make picture` from a run of the demo) -->"
END = "<!-- demo: end -->"

SHOWN = """\
<picture>
  <source media="(prefers-color-scheme: dark)" srcset="docs/images/demo-dark.svg">
  <img alt="Cumulative service of four clients, two policies" src="docs/images/demo-light.svg">
</picture>

```text
{table}
```"""


def pictures(report: str) -> dict[str, str]:
    """The first plot of a report's HTML as a file for each theme. Raises ValueError if there is no plot."""
    found = re.search(r"<svg.*?</svg>", report, flags=re.DOTALL)
    if found is None:
        raise ValueError("the report holds no plot; give the HTML page that `evenflow demo --report` wrote")
    drawn = found[0]
    if "xmlns=" not in drawn.split(">", 1)[0]:
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        drawn = drawn.replace("<svg ", f"<svg {names} ", 1)
    return {theme: drawn.replace("currentColor", ink) for theme, ink in INK.items()}


def printed_table(printed: str) -> str:
    """The table that the demo printed: its rule, two lines above it, and every line below up to an empty one."""
    lines = printed.splitlines()
    rules = [number for number, line in enumerate(lines) if line.strip() and not line.strip(" \u2500\u2501")]
    if not rules:
        raise ValueError("the output holds no table; give what `evenflow demo` printed")
    below = lines[rules[0] :]
    end = next((number for number, line in enumerate(below) if not line.strip()), len(below))
    return "\n".join(line.rstrip() for line in [*lines[max(rules[0] - 2, 0) : rules[0]], *below[:end]])


def with_demo(readme: str, printed: str) -> str:
    """The README with picture and table between its two marks."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{SHOWN.format(table=printed_table(printed))}\n{END}{after}"


def main(report: Path, printed: Path) -> None:
    """Write both pictures and the README's part."""
    for theme, drawn in pictures(report.read_text()).items():
        (ROOT / "docs" / "images" / f"demo-{theme}.svg").write_text(drawn + "\n")
    readme = ROOT / "README.md"
    readme.write_text(with_demo(readme.read_text(), printed.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
