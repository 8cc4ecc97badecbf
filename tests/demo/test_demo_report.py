"""The demo's table and page, from results alone."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from evenflow.base.errors import ConfigError
from evenflow.demo.contest import ClientResult, Round
from evenflow.demo.present import Sample, headline, report_page, result_table, sample_lines
from evenflow.demo.run import DemoOptions, client_plans
from evenflow.demo.stage import embedded_stage


def _round(policy: str, slow: float) -> Round:
    def client(name: str, share: float, ttft_s: float) -> ClientResult:
        return ClientResult(
            name=name,
            num_requests=1234,
            num_cut_off=3,
            tokens=56789,
            service=share * 1000,
            share=share,
            ttft_p50_s=ttft_s,
            ttft_p99_s=ttft_s * 2,
            timeline=[(t / 2, share * t) for t in range(20)],
        )

    quiet = [client(name, 0.1, slow) for name in ("anna", "ben", "cleo")]
    return Round(
        policy=policy,
        seconds=25.0,
        start_s=4.2,
        register_s=3.1,
        num_adapters=1006,
        num_adapters_used=980,
        num_adapter_loads=4321,
        num_resident=600,
        clients=[client("greedy", 0.7, 2.5), *quiet],
    )


ROUNDS = [_round("fcfs", 2.0), _round("vtc", 0.04)]
SAMPLES = [Sample("Where is the <lighthouse>?", {"base": "The lighthouse is on Anchor Quay.", "verse": "one,\ntwo"})]


def test_the_table_fits_eighty_columns():
    out = io.StringIO()
    Console(file=out, width=80).print(result_table(ROUNDS))
    lines = out.getvalue().splitlines()
    assert "…" not in out.getvalue()
    anna = next(line for line in lines if line.startswith("anna"))
    assert anna.split() == ["anna", "1,234", "56,789", "10.0%", "2,000", "4,000", "1,234", "56,789", "10.0%", "40", "80"]


def test_the_headline_has_the_medians():
    assert "2,000 ms" in headline(ROUNDS)
    assert "40 ms" in headline(ROUNDS)


def test_the_page_stands_alone_and_shows_everything(tmp_path):
    path = tmp_path / "demo-report.html"
    report_page(ROUNDS, client_plans(["t"], 64, embedded_stage()), SAMPLES, 99.0).write(path)
    html = path.read_text()
    assert html.count("<svg") == 2
    assert "1,006 adapters" in html
    assert "Where is the &lt;lighthouse&gt;?" in html
    assert "980" in html
    for outside in ("http://", "https://"):
        links = [part for part in html.split(outside)[1:] if not part.startswith("www.w3.org")]
        assert not links, "nothing is fetched"


def test_samples_are_indented_under_their_prompt():
    out = io.StringIO()
    Console(file=out, width=80).print(sample_lines(SAMPLES[0]))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines == [
        "Where is the <lighthouse>?",
        "  base  The lighthouse is on Anchor Quay.",
        "  verse one,",
        "        two",
        "",
    ]


def test_an_unwritable_report_is_a_clear_error(tmp_path):
    page = report_page(ROUNDS, client_plans(["t"], 64, embedded_stage()), SAMPLES, 99.0)
    with pytest.raises(ConfigError, match="no-such-folder"):
        page.write(tmp_path / "no-such-folder" / "report.html")


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"greedy": 0}, {"num_adapters": -1}])
def test_options_name_the_wrong_field(tmp_path, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DemoOptions(report=tmp_path / "r.html", **wrong)
    with pytest.raises(ConfigError, match="report"):
        DemoOptions(report=tmp_path)
