"""The README's picture is the report's first plot, in the ink of either theme."""

from __future__ import annotations

import pytest

from evenflow.report.plots import figure_svg, line_plot
from reference.picture import INK, pictures


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
