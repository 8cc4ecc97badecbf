"""The README's picture is the report's first plot, in the ink of either theme."""

from __future__ import annotations

import pytest

from evenflow.report.plots import figure_svg, line_plot
from reference.picture import BEGIN, END, INK, pictures, with_demo


def test_both_themes_are_whole_files_with_their_own_ink():
    drawn = figure_svg(line_plot({"anna": ([0.0, 1.0], [0.0, 2.0])}, x_label="time (s)", y_label="service"), label="service")
    found = pictures(f"<html><figure>{drawn}</figure><svg>another</svg></html>")
    assert set(found) == set(INK)
    for theme, text in found.items():
        assert text.startswith("<svg ")
        assert text.count("xmlns=") == 1
        assert INK[theme] in text
        assert "currentColor" not in text
        assert "another" not in text


def test_a_page_without_a_plot_is_refused():
    with pytest.raises(ValueError, match="evenflow demo --report"):
        pictures("<html></html>")


PRINTED = """\
greedy floods ...

        fcfs            fair
client  reqs  share   reqs  share
─────────────────────────────────
greedy   603  96.7%    481  75.9%
anna      20   0.6%    196   5.9%

Quiet clients wait less.
"""


def test_the_readme_shows_the_table_that_was_printed():
    shown = with_demo(f"before {BEGIN}\nold\n{END} after", PRINTED)
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert "old" not in shown
    table = shown.split("```text\n")[1].split("\n```")[0]
    assert table == "\n".join(PRINTED.splitlines()[2:7])
    assert with_demo(shown, PRINTED) == shown


def test_an_output_without_a_table_is_refused():
    with pytest.raises(ValueError, match="evenflow demo"):
        with_demo(f"{BEGIN}{END}", "nothing")
