"""The report of a folder of results: accuracies with paired differences, bytes, times. Predictions: ``prediction_page``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenflow.mcbench.suites.labels import label, layout_of
from evenflow.mcbench.suites.study_sections import add_evaluation, add_prediction, add_study, judged_by
from evenflow.mcbench.suites.time_tables import add_times
from evenflow.mcbench.tasks.scores import baseline_key, mean_and_interval
from evenflow.report.page import Page
from evenflow.report.plots import interval_plot

Result = Mapping[str, Any]


def _is_dense(result: Result) -> bool:
    p = result["parameters"]
    return p["compress"] in ("none", "sp=none") and p.get("pretrain_compress", "none") == "none"


def paired_difference(result: Result, baseline: Result) -> tuple[float, float | None, int]:
    """Return (mean, half width of the 95 % interval, number of seeds) of the headline minus the dense run's, seed by seed."""
    name = result["metric"]
    dense = dict(zip(baseline["seeds"], baseline[f"{name}_by_seed"]))
    pairs = [value - dense[seed] for seed, value in zip(result["seeds"], result[f"{name}_by_seed"]) if seed in dense]
    if not pairs:
        return float("nan"), None, 0
    return (*mean_and_interval(pairs), len(pairs))


def accuracy_rows(results: Sequence[Result]) -> list[list[Any]]:
    """Return (task, layout, what, metric, score, difference to dense, interval, seeds, dense at evaluation, bytes share).

    Within a task and layout, the dense run first, then from the best difference to the worst.
    """
    dense = {baseline_key(r): r for r in results if _is_dense(r)}
    rows = []
    for result in results:
        p, name = result["parameters"], result["metric"]
        baseline = dense.get(baseline_key(result))
        difference, half, share = None, None, None
        if baseline is not None and baseline is not result:
            paired, half, count = paired_difference(result, baseline)
            difference = paired if count else None
            sent = sum(site["counted"] for site in result["bytes_per_step"].values())
            whole = sum(site["counted"] for site in baseline["bytes_per_step"].values())
            share = sent / whole if whole else None
        layout = layout_of(result)
        task = p["task"] + (f" after {p['pretrain']}" if p.get("pretrain") else "")
        seeds = len(result["seeds"])
        rows.append(
            [task, layout, label(result), name, result[name], difference, half, seeds, result["dense_at_eval"].get(name), share]
        )

    def order(row: list[Any]) -> tuple[Any, ...]:
        worse = 0.0 if row[5] is None else row[5] if row[3] == "loss" else -row[5]
        # Dense runs first, and what has no score, because all seeds diverged, last.
        return (row[0], row[1], row[4] is None, row[5] is not None, worse, row[2])

    return sorted(rows, key=order)


def results_page(
    results: Sequence[Result],
    failures: Sequence[Result],
    studies: Sequence[Result] = (),
    predictions: Sequence[Result] = (),
    evaluations: Sequence[Result] = (),
) -> Page:
    """Return the page. What was predicted has sections of its own, beside the study that it was made for."""
    count = f"{len(results)} configurations measured, {len(failures)} failed"
    page = Page(
        "Does compression pay?",
        f"{count}; {len(studies)} studies" if studies and results else f"{len(studies)} studies" if studies else count,
    )
    if results:
        _accuracy(page, results)
    timed = [r for r in results if r["ms_per_iteration"]]
    if timed:
        add_times(page, timed)
    for evaluation in evaluations:
        add_evaluation(page, evaluation)
    for study in studies:
        add_study(page, study)
        for prediction in predictions:
            if judged_by(prediction, study):
                add_prediction(page, prediction, study)
    if failures:
        page.section("Failed", "Configurations that ended with an error; their partial results are not counted.")
        page.table(
            ["configuration", "error"],
            [[f["parameters"]["task"] + " " + f["parameters"]["compress"], f["error"]] for f in failures],
        )
    return page


def _accuracy(page: Page, results: Sequence[Result]) -> None:
    """Add a table and a plot of paired differences for each task and layout."""
    page.section(
        "Accuracy",
        "Score of each task, and its difference to the dense run, seed by seed, with a 95 % interval (Student's t): an "
        "interval that holds 0 shows no effect. One seed has no interval. Dense at eval: compression switched off at "
        "evaluation only. Seeds that diverged count in no mean; how many did stands beside the name. Bytes: all that the sites "
        "send in a training step, as a share of the dense run in fp32.",
    )
    headers = ["compression", "score", "difference", "± 95 %", "seeds", "dense at eval", "bytes / dense"]
    grouped: dict[tuple[str, str, str], list[list[Any]]] = {}
    for row in accuracy_rows(results):
        grouped.setdefault((row[0], row[1], row[3]), []).append(row)
    for (task, layout, metric), rows in grouped.items():
        better = "lower is better" if metric == "loss" else "higher is better"
        page.section(f"{task}, {layout}", f"{metric}, {better}.")
        page.table(headers, [[row[2], *map(_rounded, row[4:])] for row in rows])
        differences = {row[2]: (row[5], row[6]) for row in rows if row[5] is not None}
        if differences:
            page.figure(interval_plot(differences, x_label=f"difference to dense ({metric}, {better})"))


def _rounded(cell: Any) -> Any:
    return round(cell, 4) if isinstance(cell, float) else cell
