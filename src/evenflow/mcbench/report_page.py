"""The report of a folder of results: accuracies with paired differences, bytes, times. Predictions: ``prediction_page``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenflow.mcbench.metrics import mean_and_interval
from evenflow.mcbench.studies import break_even_points
from evenflow.report.page import Page
from evenflow.report.plots import bar_plot, interval_plot, line_plot

Result = Mapping[str, Any]


def label(result: Result) -> str:
    """Return what was compressed, and where."""
    p = result["parameters"]
    extra = [f"layers {p['layers']}"] if p["layers"] != "last-half" else []
    extra += [f"warm-up {p['warmup_steps']}"] if p["warmup_steps"] else []
    extra += [f"gradient {p['gradient']}"] if p["gradient"] and not p["gradient"].endswith("masked") else []
    if p.get("pretrain_compress", "none") != "none":
        extra.append(f"pre-trained with {p['pretrain_compress']}")
    return p["compress"] + (f" ({', '.join(extra)})" if extra else "")


_SAME = ("task", "model", "tp", "pp", "hidden", "num_layers", "heads", "steps", "batch", "rate", "link", "emulate", "pretrain")


def _baseline_key(result: Result) -> tuple[Any, ...]:
    return tuple(result["parameters"].get(name) for name in _SAME)


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
    dense = {_baseline_key(r): r for r in results if _is_dense(r)}
    rows = []
    for result in results:
        p, name = result["parameters"], result["metric"]
        baseline = dense.get(_baseline_key(result))
        difference, half, share = None, None, None
        if baseline is not None and baseline is not result:
            difference, half, _ = paired_difference(result, baseline)
            sent = sum(site["counted"] for site in result["bytes_per_step"].values())
            whole = sum(site["counted"] for site in baseline["bytes_per_step"].values())
            share = sent / whole if whole else None
        layout = f"{p['tp']} x {p['pp']}"
        task = p["task"] + (f" after {p['pretrain']}" if p.get("pretrain") else "")
        seeds = len(result["seeds"])
        rows.append(
            [task, layout, label(result), name, result[name], difference, half, seeds, result["dense_at_eval"].get(name), share]
        )

    def order(row: list[Any]) -> tuple[Any, ...]:
        worse = 0.0 if row[5] is None else row[5] if row[3] == "loss" else -row[5]
        return (row[0], row[1], row[5] is not None, worse, row[2])

    return sorted(rows, key=order)


def results_page(results: Sequence[Result], failures: Sequence[Result], studies: Sequence[Result] = ()) -> Page:
    """Return the page. Measured numbers only; predictions have a page of their own."""
    page = Page("Does compression pay?", f"{len(results)} configurations measured, {len(failures)} failed")
    _accuracy(page, results)
    timed = [r for r in results if r["ms_per_iteration"]]
    if timed:
        page.section(
            "Time",
            "Real ranks. Median of whole iterations without a stopwatch; the parts come from a second pass "
            "with one, with a barrier before each collective, so their sum is larger.",
        )
        parts = sorted({part for r in timed for part in r["ms_per_iteration"]["profiled"]})
        rows = []
        for r in timed:
            p, ms = r["parameters"], r["ms_per_iteration"]
            rows.append(
                [
                    p["task"],
                    f"{p['tp']} x {p['pp']}",
                    label(r),
                    r["link"]["nominal"],
                    r["link"]["kind"],
                    ms["total"],
                    *[ms["profiled"].get(part, "") for part in parts],
                    _blank(r["achieved_gbit_s"]),
                ]
            )
        page.table(["task", "TP x PP", "compression", "link", "made by", "ms", *parts, "achieved Gbit/s"], rows)
        page.figure(
            bar_plot(
                {label(r)[:28]: {"ms per iteration": r["ms_per_iteration"]["total"]} for r in timed[:12]},
                y_label="ms per iteration",
            )
        )
    for study in studies:
        _study(page, study)
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
        "evaluation only. Bytes: all that the sites send in a training step, as a share of the dense run in fp32.",
    )
    headers = ["compression", "score", "difference", "± 95 %", "seeds", "dense at eval", "bytes / dense"]
    grouped: dict[tuple[str, str, str], list[list[Any]]] = {}
    for row in accuracy_rows(results):
        grouped.setdefault((row[0], row[1], row[3]), []).append(row)
    for (task, layout, metric), rows in grouped.items():
        better = "lower is better" if metric == "loss" else "higher is better"
        page.section(f"{task}, TP x PP = {layout}", f"{metric}, {better}.")
        page.table(headers, [[row[2], *map(_rounded, row[4:])] for row in rows])
        differences = {row[2]: (row[5], row[6]) for row in rows if row[5] is not None}
        if differences:
            page.figure(interval_plot(differences, x_label=f"difference to dense ({metric}, {better})"))


def _rounded(cell: Any) -> Any:
    return round(cell, 4) if isinstance(cell, float) else cell


def _study(page: Page, study: Result) -> None:
    if study["study"] == "break-even":
        page.section(
            f"Break-even on {study['link']}, {study['world_size']} ranks",
            f"One compressed sum, {study['link_kind']}; medians. Interface: bytes at the network interface, both directions, "
            "headers included, over the bytes counted.",
        )
        points = break_even_points(study)
        page.table(["compressor", "faster than none from (dense bytes)"], [[s, p or "never here"] for s, p in points.items()])
        rows = [
            [r["spec"], r["dense_bytes"], r["sent_bytes"], r["ms"], _blank(r.get("interface_ratio"))] for r in study["rows"]
        ]
        page.table(["compressor", "dense bytes", "sent bytes", "ms", "interface"], rows)
        specs = list(dict.fromkeys(r["spec"] for r in study["rows"]))
        series = {
            s: ([r["dense_bytes"] for r in study["rows"] if r["spec"] == s], [r["ms"] for r in study["rows"] if r["spec"] == s])
            for s in specs
        }
        page.figure(line_plot(series, x_label="dense message (bytes)", y_label="ms", is_log_x=True, is_log_y=True))
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


def _blank(value: Any) -> Any:
    return "" if value is None else value
