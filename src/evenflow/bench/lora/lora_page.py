"""One HTML page of a document of the LoRA benchmark: figures along each suite's axis, and the tables behind them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from evenflow.bench.lora.suites import SUITES
from evenflow.bench.lora.tables import (
    bandwidth_of,
    median_of,
    of,
    ordered_cases,
    output_tokens_per_s,
    per_step,
    suite_table,
    variants_of,
)
from evenflow.bench.lora.variant_names import PEERS, VARIANTS
from evenflow.report.page import Page
from evenflow.report.plots import Series, bar_plot, line_plot

Result = Mapping[str, Any]
Measure = Callable[[Mapping[str, Any]], float | None]

_SATURATED: tuple[tuple[str, Measure], ...] = (
    ("output tokens/s", output_tokens_per_s),
    ("adapter rows read, MB per step", lambda s: per_step(s, "adapter_bytes") / 1e6),
    ("adapter rows loaded, MB per step", lambda s: per_step(s, "loaded_bytes") / 1e6),
)
_CLOCK: tuple[tuple[str, Measure], ...] = (
    ("requests/s", of("throughput_req_s")),
    ("time to first token, mean s", of("ttft_mean_s")),
    ("SLO attainment", of("slo_attainment")),
    ("satisfaction", of("satisfaction_mean")),
)


def lora_page(document: Mapping[str, Any]) -> Page:
    """The page of everything that the document has."""
    hardware, parameters = document["hardware"], document["parameters"]
    machine = f"{hardware['cpu']}, {hardware['cores']} cores"
    page = Page("Many adapters on one model", f"{machine}; setting {parameters['setting']}, {document['date']}")
    page.text(
        f"At most {parameters['max_num_seqs']} running requests and {parameters['max_batch_tokens']} tokens a step. "
        "Variants took turns, round by round; figures are medians over rounds. "
        "Requests are S-LoRA's generator's, with a quarter of its lengths."
    )
    for name, result in document["results"].items():
        if result["cases"]:
            page.section(name, result["text"])
            _FIGURES[result["method"]](page, name, result)
            page.table(*suite_table(result))
            _notes(page, result)
    used = {variant for result in document["results"].values() for variant in variants_of(result)}
    known = {**VARIANTS, **PEERS}
    page.section("What the variants are")
    page.table(["name", "what it is"], [[name, known[name.partition(":")[0]]] for name in sorted(used)])
    return page


def _notes(page: Page, result: Result) -> None:
    opened, bandwidth = result["opened"], bandwidth_of(result)
    read, copy = bandwidth["read"] / 1e9, bandwidth["copy"] / 1e9
    text = (
        f"This process reads {read:.1f} GB/s and copies {copy:.1f} GB/s; the adapters take "
        f"{opened['adapter_bytes'] / 1e9:.2f} GB on the host in {opened['dtype']}, an arena page "
        f"{opened['page_bytes'] / 1024:.0f} KiB."
    )
    if result["method"] == "saturated":
        text += (
            " `traffic explains`: the ratio to the first case if the additional bytes, read and copied at that speed, were all "
            "that differs. `of first case` and `of unified` compare the sums over all rounds: "
            "the same steps of the same requests, in turns of a second."
        )
    page.text(text)


def _lines(page: Page, name: str, result: Result, measures: tuple[tuple[str, Measure], ...]) -> None:
    """One figure for each measure: a line for each variant, or bars where the axis has no order."""
    suite = SUITES.get(name)
    cases = ordered_cases(result)
    # Zero has no place on a logarithmic axis, and cases that share a place are no line.
    places = [case["x"] for _, case in cases]
    is_log = suite is not None and suite.is_log_x
    is_line = len(set(places)) == len(places) > 2 and not (is_log and min(places) <= 0)
    for label, measure in measures:
        series: dict[str, Series] = {}
        bars: dict[str, dict[str, float]] = {case_label: {} for case_label, _ in cases}
        for variant in variants_of(result):
            points = [
                (case_label, case["x"], median_of(case["samples"][variant], measure))
                for case_label, case in cases
                if variant in case["samples"]
            ]
            known = [(x, y) for _, x, y in points if y is not None]
            if known:
                series[variant] = [x for x, _ in known], [y for _, y in known]
            for case_label, _, y in points:
                if y is not None:
                    bars[case_label][variant] = y
        if is_line:
            figure = line_plot(series, x_label=result["axis"], y_label=label, is_log_x=is_log, size=(9.0, 2.8))
        else:
            figure = bar_plot(bars, y_label=label, size=(9.0, 2.8))
        page.figure(figure, label)


def _saturated(page: Page, name: str, result: Result) -> None:
    _lines(page, name, result, _SATURATED)


def _by_the_clock(page: Page, name: str, result: Result) -> None:
    _lines(page, name, result, _CLOCK)


def _fixed(page: Page, name: str, result: Result) -> None:
    _lines(page, name, result, (("output tokens/s", output_tokens_per_s),))


def _footprint(page: Page, name: str, result: Result) -> None:
    held = {
        label: {
            "rows": samples[-1]["row_bytes"] / 1e6,
            "pages": samples[-1]["num_adapter_pages"] * samples[-1]["page_bytes"] / 1e6,
        }
        for label, case in ordered_cases(result)
        for samples in case["samples"].values()
    }
    page.figure(bar_plot(held, y_label="MB", size=(9.0, 2.8)), "bytes of the adapters' rows, and of the pages that hold them")


def _operators(page: Page, name: str, result: Result) -> None:
    times = {
        label.replace(", ", "\n"): {
            variant: 1e6 * statistics.median(samples[-1]["seconds_all"]) for variant, samples in case["samples"].items()
        }
        for label, case in ordered_cases(result)
    }
    page.figure(bar_plot(times, y_label="us", is_log_y=True, size=(11.0, 3.2)), "microseconds for one site and layer")


_FIGURES: Mapping[str, Callable[[Page, str, Result], None]] = {
    "saturated": _saturated,
    "clock": _by_the_clock,
    "fixed": _fixed,
    "footprint": _footprint,
    "operators": _operators,
}


__all__ = ["lora_page"]
