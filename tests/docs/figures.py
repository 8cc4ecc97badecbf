"""Numbers in the manual that come from a results file, each beside the value that it rounds.

A page says where its numbers come from in a comment below the table or paragraph that has them:

    <!-- figures: benchmarks/results/NAME.json
    1.77 = cases > 1 stream > int8 > to_first
    0.62 = cases > 1 stream > int8 > tokens_per_s > median : roofline > int8
    59%  = runs > 0 > hit_rate
    -->

A path leads through ``results`` of the file, from key to key or to a place in a list; ``each`` stands for all places. ``A : B``
is A divided by B, ``sum A`` and ``median A`` take a list, ``A * 1000`` is a change of unit. A number with a percent sign is a
hundred times the value.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMENT = re.compile(r"<!-- figures: (\S+)\n(.*?)-->", re.DOTALL)
_OF_LISTS: dict[str, Callable[[list[float]], float]] = {"sum": sum, "median": statistics.median}
_NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+")


@dataclass(frozen=True)
class Figure:
    """One number of a page. ``shown``: as it is written there."""

    page: Path
    file: str
    shown: str
    source: str
    text: str

    def value(self, results: Any) -> float:
        """The value in the file. Raises KeyError, naming the path, if it is not there."""
        source, _, factor = self.source.partition(" * ")
        top, _, bottom = source.partition(" : ")
        value = _term(results, top)
        if bottom:
            value /= _term(results, bottom)
        return value * float(factor or 1) * (100 if self.shown.endswith("%") else 1)

    @property
    def stands_in_text(self) -> bool:
        """Whether the page shows the number, as a number of its own, above the comment."""
        number = re.escape(self.shown.rstrip("%"))
        return re.search(rf"(?<![\d.,]){number}(?![\d]|[.,]\d)", self.text) is not None

    def rounds(self, value: float) -> bool:
        """Whether ``value`` is what is shown, in as many digits."""
        number = self.shown.rstrip("%").replace(",", "")
        if not _NUMBER.fullmatch(number):
            raise ValueError(f"{self.page}: {self.shown!r} is no number")
        num_digits = len(number.partition(".")[2])
        return abs(value - float(number)) <= 0.5000001 * 10**-num_digits


def figures_of(page: Path) -> Iterator[Figure]:
    """The figures that ``page`` attributes to results files."""
    text = page.read_text()
    for comment in COMMENT.finditer(text):
        above = text[: comment.start()]
        section = above[max(above.rfind("\n#"), 0) :]
        for line in comment[2].strip().splitlines():
            shown, equals, source = line.partition(" = ")
            if not equals:
                raise ValueError(f"{page}: {line!r} is not NUMBER = PATH")
            yield Figure(page, comment[1], shown.strip(), source.strip(), section)


def _term(results: Any, text: str) -> float:
    of_list, _, path = text.strip().partition(" ")
    if of_list in _OF_LISTS:
        return float(_OF_LISTS[of_list](_at(results, path.split(" > "), path)))
    return float(_at(results, text.strip().split(" > "), text))


def _at(here: Any, keys: list[str], path: str) -> Any:
    if not keys:
        return here
    if keys[0] == "each" and isinstance(here, list):
        return [_at(item, keys[1:], path) for item in here]
    try:
        found = here[int(keys[0])] if isinstance(here, list) else here[keys[0]]
    except (KeyError, IndexError, ValueError):
        beside = range(len(here)) if isinstance(here, list) else here
        raise KeyError(f"{path}: there is no {keys[0]!r} beside {', '.join(map(str, beside))}") from None
    return _at(found, keys[1:], path)


def results_of(file: Path) -> Any:
    """What a results file holds: its ``results``, or all of it."""
    document = json.loads(file.read_text())
    return document.get("results", document)
