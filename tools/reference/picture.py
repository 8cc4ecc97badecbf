"""The README's picture: the first plot of a demo's report, for light and for dark pages (``make picture``)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

IMAGES = Path(__file__).parents[2] / "docs" / "images"
INK = {"light": "#1f2328", "dark": "#e6edf3"}
"""Colour of text and axes. The report lets the page decide; a picture in a README has no page to ask."""


def pictures(report: str) -> dict[str, str]:
    """The first plot of a report's HTML as a file for each theme. Raises ValueError if there is no plot."""
    found = re.search(r"<svg.*?</svg>", report, flags=re.DOTALL)
    if found is None:
        raise ValueError("the report holds no plot; give the HTML page that `evenflow demo --report` wrote")
    drawn = found[0].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
    drawn = drawn if "xmlns=" not in found[0].split(">", 1)[0] else found[0]
    return {theme: drawn.replace("currentColor", ink) for theme, ink in INK.items()}


def main(report: Path) -> None:
    """Write docs/images/demo-light.svg and demo-dark.svg."""
    for theme, drawn in pictures(report.read_text()).items():
        (IMAGES / f"demo-{theme}.svg").write_text(drawn + "\n")
        print(f"docs/images/demo-{theme}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
