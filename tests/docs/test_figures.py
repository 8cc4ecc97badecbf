"""Numbers that the manual attributes to a results file are in it."""

import re
from pathlib import Path

import pytest
from figures import COMMENT, Figure, figures_of, results_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_NAMED = re.compile(r"benchmarks/results/([\w.-]+\.json)")


@pytest.mark.parametrize("page", [page for page in PAGES if COMMENT.search(page.read_text())], ids=lambda page: page.stem)
def test_figures_are_those_of_their_files(page):
    wrong = []
    for figure in figures_of(page):
        assert figure.stands_in_text, f"{page.name} does not show {figure.shown} ({figure.source})"
        value = figure.value(results_of(ROOT / figure.file))
        if not figure.rounds(value):
            wrong.append(f"{figure.shown} is {value:.6g} in {figure.file}: {figure.source}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_that_cites_results_says_which_numbers_come_from_where(page):
    text = page.read_text()
    if _NAMED.search(COMMENT.sub("", text)):
        assert COMMENT.search(text), f"{page.name} cites results, and no number of it is checked"


def test_a_number_that_is_not_in_the_file_is_noticed():
    figure = Figure(Path("x.md"), "f.json", "1.77", "a > 0 : b * 10", "it is 1.77 times")
    assert figure.stands_in_text
    assert figure.rounds(figure.value({"a": [0.354], "b": 2}))
    assert not figure.rounds(figure.value({"a": [0.356], "b": 2}))
    assert not Figure(Path("x.md"), "f.json", "1.7", "a", "it is 1.77 times").stands_in_text
    assert Figure(Path("x.md"), "f.json", "59%", "a", "59 %").rounds(59.4)
    with pytest.raises(KeyError, match="no 'c' beside a, b"):
        Figure(Path("x.md"), "f.json", "1", "c", "").value({"a": 1, "b": 2})


def test_lists_are_summed_and_keys_that_lack_are_named():
    results = {"runs": [{"s": 1.0}, {"s": 3.0}, {"s": 4.5}]}
    assert Figure(Path("x.md"), "f.json", "8.5", "sum runs > each > s", "").value(results) == 8.5
    assert Figure(Path("x.md"), "f.json", "3", "median runs > each > s : runs > 0 > s", "").value(results) == 3
