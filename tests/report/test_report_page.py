"""The page must stand alone, escape what it is given, and say why it cannot be written."""

import math
import os
import stat
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console

from evenflow.base.errors import ConfigError
from evenflow.report.page import Page
from evenflow.report.plots import bar_plot, cumulative_service_plot, figure_svg, line_plot, small_multiples, write_png
from evenflow.report.tables import format_cell, table_html, table_terminal

LINES = {f"client {i}": ([0.0, 1.0, 2.0], [0.0, 1.0 * i, 2.0 * i]) for i in range(14)}


class Collector(HTMLParser):
    """Tags that were opened and the addresses they name."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def a_page() -> Page:
    page = Page("Title <b>", "of `everything` & more")
    page.section("First", "One.\n\nTwo with `code`.").tiles([("rate", 12.5, "tok/s")])
    page.table(["name", "value"], [["<script>", 1234.5], ["b", None]], caption="numbers")
    page.section("Second").figure(cumulative_service_plot(LINES), 'service of "all"').preformatted("a < b\n  c")
    return page


def test_page_is_self_contained_and_escapes_its_input():
    html = a_page().html()
    seen = Collector()
    seen.feed(html)
    assert "script" not in seen.tags
    assert seen.tags.count("h2") == 2
    assert seen.tags.count("svg") == 1
    assert all(address.startswith("#") for address in seen.addresses)
    assert "http" not in html.replace("http://www.w3.org/", "")
    assert "Title &lt;b&gt;" in html
    assert "<code>everything</code> &amp; more" in html
    assert "<p>One.</p>" in html
    assert "a &lt; b\n  c" in html
    assert "1,234" in html or "1,235" in html


def test_page_writes_whole_files(tmp_path):
    path = tmp_path / "page.html"
    a_page().write(path)
    first = path.read_text()
    assert first == a_page().html()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)
    Page("other").write(path)
    assert "other" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path], "a temporary file was left behind"


def test_page_says_where_and_why_it_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere/page\.html.*No such file"):
        Page("x").write(tmp_path / "nowhere" / "page.html")
    with pytest.raises(ConfigError, match="irectory"):
        Page("x").write(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full to stand for a full disk")
def test_page_on_a_full_disk():
    with pytest.raises(ConfigError, match="/dev/full: No space left"):
        Page("x").write("/dev/full")
    with pytest.raises(ConfigError, match="/dev/full: No space left"):
        write_png(line_plot(LINES, x_label="x", y_label="y"), "/dev/full")


def test_svg_is_xml_in_the_colour_of_the_page():
    svg = figure_svg(line_plot({"a": ([1, 2], [3, 4])}, x_label="time", y_label="rate", title="T"), label='say "hi"')
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert root.attrib["aria-label"] == 'say "hi"'
    assert "currentColor" in svg
    assert "#0a0b0c" not in svg
    assert svg == figure_svg(line_plot({"a": ([1, 2], [3, 4])}, x_label="time", y_label="rate", title="T"), label='say "hi"')


def test_ten_lines_are_named_and_the_rest_are_others():
    figure = cumulative_service_plot(LINES)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [f"client {i}" for i in range(13, 3, -1)] + ["others"]


def test_small_multiples_share_axes_and_colours():
    figure = small_multiples({"fcfs": LINES, "vtc": {"client 3": ([0, 1], [0, 9])}, "x": {}}, x_label="x", y_label="y")
    left, right = figure.axes[:2]
    assert left.get_ylim() == right.get_ylim()
    assert left.lines[-4].get_color() == right.lines[0].get_color()


def test_bars_leave_gaps_and_lines_must_match():
    figure = bar_plot({"g": {"a": 1.0, "b": math.nan}, "h": {"a": 2.0}}, y_label="y")
    assert len(figure.axes[0].patches) == 4
    with pytest.raises(ValueError, match="2 x values and 1 y values"):
        line_plot({"a": ([1, 2], [3])}, x_label="x", y_label="y")


def test_png(tmp_path):
    write_png(line_plot(LINES, x_label="x", y_label="y"), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(None, "–"), (math.nan, "–"), (math.inf, "∞"), (True, "yes"), ("x", "x"), (12345, "12,345")],
        *[
            (0.99999, "1.00"),
            (12345.6, "12,346"),
            (123.456, "123.5"),
            (1.0, "1.00"),
            (0.0, "0.00"),
            (0.012345, "0.0123"),
            (-2.5, "-2.50"),
        ],
    ],
)
def test_numbers_read_well(value, text):
    assert format_cell(value) == text


def test_tables_align_numbers_and_refuse_ragged_rows():
    html = table_html(["n", "v"], [["a", 1], ["b", None]])
    assert '<th class="number">v</th>' in html
    assert "<th>n</th>" in html
    assert "<pre>two\nlines</pre>" in table_html(["t"], [["two\nlines"]])
    with pytest.raises(ValueError, match="2 cells"):
        table_html(["n"], [["a", 1]])
    console = Console(width=60, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table_terminal(["n", "v"], [["[a]", 1]]))
    assert "[a]" in console.export_text()


def test_a_table_keeps_its_figures_at_any_width():
    headers = ["policy", "total service", "max difference", "throughput", "note", "spread", "first token within", "p99 of it"]
    rows = [["vtc-with-a-long-name", 123456, 1234567.0, 0.1234, "some long words in a row", "1,234 ± 56", 33333.0, 98765]] * 2
    for width in (40, 60, 80, 200):
        console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(table_terminal(headers, rows, title="measure"))
        text = console.export_text()
        for figure in ("123,456", "1,234,567", "0.123", "1,234 ± 56", "33,333", "98,765", "vtc-with-a-long-name"):
            assert figure in text, (width, figure, text)
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        assert ("(continued)" in text) == (width < 200)
