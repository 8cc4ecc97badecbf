"""Sections of the report: studies, and predictions beside the study they were made for, never in one table with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from evenflow.mcbench.predict.advice import ranges_in_words
from evenflow.mcbench.predict.break_even import measured_ranges
from evenflow.mcbench.runs.language_eval import table_of
from evenflow.report.page import Page
from evenflow.report.plots import interval_plot, line_plot

Result = Mapping[str, Any]


def add_study(page: Page, study: Result) -> None:
    """Add the sections of one study."""
    if study["study"] == "break-even":
        page.section(
            f"Break-even on {study['link']}, {study['world_size']} ranks",
            f"One compressed sum, {study['link_kind']}; means without the slowest tenth. Interface: bytes at "
            "the network interface, both directions, headers included, over the bytes counted.",
        )
        page.table(["compressor", "against dense fp32", "against bf16"], _range_rows(study))
        rows = [
            [r["spec"], r["dense_bytes"], r["sent_bytes"], r["ms"], _blank(r.get("interface_ratio"))] for r in study["rows"]
        ]
        page.table(["compressor", "dense bytes", "sent bytes", "ms", "interface"], rows)
        page.figure(_times(study["rows"]))
        return
    if study["study"] == "serving":
        page.section(
            "Compressed sums in serving",
            f"A random Llama over {study['world_size']} ranks: norm of the change of its logits over their norm, and bytes a "
            "rank sends for one batch.",
        )
        page.table(["compressor", "logit error", "bytes"], [[r["spec"], r["logit_error"], r["bytes"]] for r in study["rows"]])
        return
    page.section(
        "Are activations low-rank?",
        f"Singular values that hold 90 % of the energy, {study['task']} after {study['steps']} steps.",
    )
    page.table(
        ["module", "width", "activations", "gradients"],
        [[r["module"], r["width"], r["activation_rank_90"], r["gradient_rank_90"]] for r in study["rows"]],
    )
    last = study["rows"][-1]
    series = {
        kind: (list(range(1, len(last[f"{kind}_spectrum"]) + 1)), last[f"{kind}_spectrum"])
        for kind in ("activation", "gradient")
    }
    page.figure(line_plot(series, x_label="singular value", y_label="share of the largest", is_log_y=True), last["module"])


def judged_by(prediction: Result, study: Result) -> bool:
    """Return whether a prediction was made for a study."""
    return all(prediction[name] == study.get(key) for name, key in _SAME.items())


_SAME = {"prediction": "study", "link": "link", "world_size": "world_size"}


def add_prediction(page: Page, prediction: Result, study: Result) -> None:
    """Add what was said before the study began, and then how far off it was."""
    ranks = prediction["world_size"]
    page.section(
        f"Predicted: break-even on {prediction['link']}, {ranks} ranks",
        f"Predicted, not measured: from a calibration with two ranks, written at {prediction['at']}"
        + (f", before the measurement that began at {study['from']}." if "from" in study else "."),
    )
    rows = prediction["rows"]
    page.table(["compressor", "predicted against dense fp32", "predicted against bf16"], _range_rows(prediction))
    page.table(["compressor", "dense bytes", "predicted ms"], [[r["spec"], r["dense_bytes"], r["ms"]] for r in rows])
    page.figure(_times(rows, "predicted ms"))
    errors = prediction_errors(prediction, study)
    within = sum(abs(error) <= 0.25 for error in errors.values())
    sizes = sorted({size for _, size in errors})
    page.text(f"How far off: {within} of {len(errors)} predictions are within 25 % of what was then measured.")
    page.table(
        ["prediction / measurement - 1, by dense bytes", *map(str, sizes)],
        [
            [spec, *[f"{100 * errors[spec, size]:+.0f} %" if (spec, size) in errors else "" for size in sizes]]
            for spec in dict.fromkeys(spec for spec, _ in errors)
        ],
    )


def add_evaluation(page: Page, evaluation: Result) -> None:
    """Add what compressors did to the loss of a trained language model, and a plot of it."""
    p = evaluation["parameters"]
    page.section(
        f"Loss of {p['model']}, TP {p['tp']}",
        f"Evaluated only: {evaluation['tokens']:,} tokens of {p['text']} in windows of {p['length']}, {p['dtype']}; compressed "
        f"sums in layers {p['layers']}. Difference: nats per token more than the dense model, paired window by window, with a "
        "95 % interval.",
    )
    page.table(*table_of(evaluation))
    rows = [row for row in evaluation["rows"] if "error" not in row and row["spec"] != "none"]
    if rows:
        differences = {row["spec"]: (row["difference"], row["interval"]) for row in rows}
        page.figure(interval_plot(differences, x_label="nats per token more than dense"))


def _range_rows(study: Result) -> list[list[Any]]:
    """Return (compressor, where it beats a dense fp32 sum, where it beats a bf16 one): ranges of dense bytes."""
    dense = measured_ranges(study)
    has_bf16 = any(row["spec"] == "bf16" for row in study["rows"])
    halved = measured_ranges(study, "bf16") if has_bf16 else {}
    return [
        [spec, ranges_in_words(ranges), ranges_in_words(halved[spec]) if spec in halved else ""]
        for spec, ranges in dense.items()
    ]


def prediction_errors(prediction: Result, study: Result) -> dict[tuple[str, int], float]:
    """Return prediction / measurement - 1 by (compressor, dense bytes)."""
    measured = {(row["spec"], row["dense_bytes"]): row["ms"] for row in study["rows"]}
    predicted = {(row["spec"], row["dense_bytes"]): row["ms"] for row in prediction["rows"]}
    return {key: predicted[key] / ms - 1 for key, ms in measured.items() if key in predicted}


def _times(rows: Sequence[Result], y_label: str = "ms") -> Figure:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        sizes, times = series.setdefault(row["spec"], ([], []))
        sizes.append(row["dense_bytes"])
        times.append(row["ms"])
    return line_plot(series, x_label="dense message (bytes)", y_label=y_label, is_log_x=True, is_log_y=True)


def _blank(value: Any) -> Any:
    return "" if value is None else value
