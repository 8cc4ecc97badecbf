"""A comparison as people read it: terminal tables, and one HTML page of its JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenflow.report.page import Page
from evenflow.report.plots import bar_plot
from evenflow.report.tables import Cell

Table = tuple[list[str], list[list[Cell]]]


def standings_table(document: Mapping[str, Any]) -> Table:
    """What became of every engine."""
    rows: list[list[Cell]] = []
    for name, standing in document["results"]["peers"].items():
        rows.append(
            [
                name, standing["status"], _rounded(standing["start_s"], 1), _percent(standing["agreement"]),
                _percent(standing["agreement_adapters"]), " ".join(standing["message"].split())[:160],
            ]
        )  # fmt: skip
    return ["engine", "status", "start, s", "agreement", "with adapters", "what it said"], rows


def rates_table(document: Mapping[str, Any]) -> Table:
    """Output tokens per second, medians over rounds, and in parentheses how many times as fast the first engine was."""
    names = _measured(document)
    rows: list[list[Cell]] = []
    for row in document["results"]["cases"]:
        cells: list[Cell] = [row["case"]]
        for name in names:
            rate = row["output_tokens_per_s"].get(name)
            ratio = row["times_as_fast"].get(name)
            if rate is None:
                cells.append("cannot" if name in row["faults"] else None)
            elif ratio is None or name == names[0]:
                cells.append(f"{rate['median']:.1f}")
            else:
                cells.append(f"{rate['median']:.1f} ({ratio:.2f})")
        cells += [f"{row['bounds'][form]:.0f}" for form in row["bounds"]]
        rows.append(cells)
    forms = list(document["results"]["cases"][0]["bounds"]) if document["results"]["cases"] else []
    return ["requests x (in + out)", *names, *(f"bound, {form}" for form in forms)], rows


def comparison_page(document: Mapping[str, Any]) -> Page:
    """The page of a document."""
    hardware, parameters, results = document["hardware"], document["parameters"], document["results"]
    page = Page("Engines compared", f"{hardware['cpu']}, {parameters['num_threads']} threads; {parameters['model']}")
    machine = results["machine"]
    page.text(
        f"All engines stood beside each other and were asked in turn, {parameters['rounds']} rounds of every case after one "
        "that was dropped; figures are medians, ratios are medians over neighbouring rounds. Engines that are servers were "
        "asked over HTTP, streaming; peft and OpenVINO in process. Greedy, full length, new prompts each round."
    )
    page.section("Output tokens per second", "In parentheses: how many times as fast the first engine was.")
    names = _measured(document)
    values = {
        row["case"]: {name: row["output_tokens_per_s"][name]["median"] for name in names if name in row["output_tokens_per_s"]}
        for row in results["cases"]
    }
    width = max(9.0, 1.2 * len(values))
    page.figure(bar_plot(values, y_label="output tokens/s", is_log_y=True, size=(width, 3.6)), "Medians, logarithmic")
    page.table(*rates_table(document))
    page.text(
        f"Bounds: this machine read {machine['bytes_per_s'] / 1e9:.1f} GB/s and multiplied "
        f"{machine['operations_per_s'] / 1e9:.0f} GFLOP/s in bfloat16 in the same run. An engine that reads all matrices once "
        "a step, and in bfloat16 multiplies them with every token, cannot be faster. Of quantised weights only the bytes count."
    )
    page.section("Engines", "Agreement: the share of the reference's first tokens that an answer begins with.")
    page.table(*standings_table(document))
    return page


def _measured(document: Mapping[str, Any]) -> list[str]:
    return [name for name, standing in document["results"]["peers"].items() if standing["status"] == "ok"]


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.0f} %"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
