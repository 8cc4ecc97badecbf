"""A comparison as one page: which measure says what, a table of all policies, and the plots. Reads results only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evenflow.bench.replay.comparison import Comparison
from evenflow.fairness.measures.fairness_measures import Accounts, Windows, response_times, service_differences
from evenflow.report.page import Page
from evenflow.report.plots import Series, bar_plot, colours, small_multiples, write_png
from evenflow.report.tables import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE_COLUMNS: tuple[tuple[str, str], ...] = (
    ("max diff", "max_diff"),
    ("avg diff", "avg_diff"),
    ("diff var", "diff_var"),
    ("acc. diff", "accumulated_diff_max"),
    ("Jain", "jain"),
    ("tok/s", "throughput_tok_s"),
    ("total s", "total_s"),
    ("served", "served"),
    ("rejected", "rejected"),
    ("TTFT mean s", "ttft_mean_s"),
    ("p50", "ttft_p50_s"),
    ("p90", "ttft_p90_s"),
    ("p99", "ttft_p99_s"),
)
QUALITY_COLUMNS: tuple[tuple[str, str], ...] = (
    ("attainment", "slo_attainment"),
    ("satisfaction", "satisfaction_mean"),
    ("p10", "satisfaction_p10"),
    ("p50", "satisfaction_p50"),
    ("req/s", "throughput_req_s"),
    ("strip req/s", "strip_throughput_req_s"),
    ("completed", "num_completed"),
    ("rejected", "num_rejected"),
    ("shed", "num_shed"),
    ("TTFT mean s", "ttft_mean_s"),
    ("p90", "ttft_p90_s"),
    ("latency mean s", "latency_mean_s"),
)
BRIEF_QUALITY = ("slo_attainment", "satisfaction_mean", "throughput_req_s", "num_completed", "num_shed", "ttft_mean_s")
BRIEF_COLUMNS = ("max_diff", "avg_diff", "accumulated_diff_max", "throughput_tok_s", "rejected", "ttft_mean_s", "ttft_p99_s")
MEASURES_EXPLAINED = (
    "`paper` follows the published scripts of VTC (OSDI 2024): a request's whole cost, its input included, is spread evenly "
    "from its first to its last token, and rejected requests are left out of the demand. Use it to compare with published "
    "figures; it flatters policies that reject.\n\n"
    "`token` counts cost when a token is computed and keeps rejected requests in the demand. Use it to judge a policy.\n\n"
    "The difference at a window of 60 s is the sum over clients of min(best served - own, |demand - own|), in service per "
    "second: what clients that wanted more did not get beside the best served. `acc. diff` is the largest gap of accumulated "
    "service between two clients; under `token` only while both are backlogged, which is what the bound 2U is about. `Jain` "
    "is of the service (`paper`), or of the service over what max-min fairness would have given (`token`). Service is "
    "input + 2 x output tokens unless another cost was chosen."
)
HIERARCHY_EXPLAINED = (
    "The measures divide a client's service by its own weight times its tier's, as vtc shares it. hierarchy shares between "
    "tiers first, so with tiers its entitlements, Jain index and accumulated differences are not what it aims at: compare the "
    "service of whole tiers by the tiers' weights, and of the clients within one tier by their own."
)
QUALITY_EXPLAINED = (
    "The measures of S-LoRA (MLSys 2024). `attainment` is the part of all requests whose first token came within the "
    "objective; `satisfaction` the mean of 1 - (time to first token / objective)², 0 beyond it. Requests turned away or given "
    "up count as 0 in both. `strip` leaves out the first and last ten seconds."
)
MOST_CLIENTS = 6


def comparison_table(comparison: Comparison, measure: str, *, is_brief: bool = False) -> tuple[list[str], list[list[Cell]]]:
    """Headers and rows: one row per policy, medians over seeds. Brief: what fits a terminal."""
    columns = [column for column in TABLE_COLUMNS if not is_brief or column[1] in BRIEF_COLUMNS]
    headers = ["policy", *(title for title, _ in columns)]
    rows: list[list[Cell]] = []
    for policy in comparison.policies:
        cells: list[Cell] = [policy]
        for _, name in columns:
            value = comparison.median(policy, measure, name)
            cells.append(int(value) if name in ("served", "rejected") and value is not None else value)
        rows.append(cells)
    return headers, rows


def quality_table(comparison: Comparison, *, is_brief: bool = False) -> tuple[list[str], list[list[Cell]]]:
    """Headers and rows of the service quality: one row per policy, medians over seeds."""
    columns = [column for column in QUALITY_COLUMNS if not is_brief or column[1] in BRIEF_QUALITY]
    rows: list[list[Cell]] = []
    for policy in comparison.policies:
        cells: list[Cell] = [policy]
        for _, name in columns:
            value = comparison.median_quality(policy, name)
            cells.append(int(value) if name.startswith("num_") and value is not None else value)
        rows.append(cells)
    return ["policy", *(title for title, _ in columns)], rows


def comparison_figures(comparison: Comparison) -> dict[str, tuple[Figure, str]]:
    """Plots by file name, each with its caption."""
    trace, policies = comparison.trace, comparison.policies
    horizon = trace.horizon_s
    times = np.linspace(0.0, horizon, 121)
    tokens = {p: Accounts(_log(comparison, p), "token") for p in policies}
    shown = _main_clients(comparison)
    colour = colours([f"client {c}" for c in shown])
    windows = Windows(horizon, num_ticks=60)
    middles = windows.starts_s + windows.window_s / 2

    def per_client(curve) -> dict[str, dict[str, Series]]:  # type: ignore[no-untyped-def]
        return {p: {f"client {c}": curve(p, c) for c in shown} for p in policies}

    def cumulative(p: str, c: str) -> Series:
        return times.tolist(), tokens[p].service(c, times).tolist()

    def rate(p: str, c: str) -> Series:
        gained = tokens[p].service(c, windows.starts_s + windows.window_s) - tokens[p].service(c, windows.starts_s)
        return middles.tolist(), (gained / windows.window_s).tolist()

    def response(p: str, c: str) -> Series:
        return times.tolist(), response_times(_log(comparison, p), c, times.tolist())

    differences = {}
    for measure in ("paper", "token"):
        differences[measure] = {
            p: (middles.tolist(), service_differences(Accounts(_log(comparison, p), measure), windows).tolist())
            for p in policies
        }
    who = "the clients with the largest demand" if len(trace.clients) > len(shown) else "all clients"
    columns = 2 if len(policies) > 1 else 1
    size = (4.7, 2.5) if columns == 2 else (9.0, 3.4)
    figures: dict[str, tuple[Figure, str]] = {
        "cumulative-service": (
            small_multiples(
                per_client(cumulative),
                x_label="time (s)",
                y_label="service",
                colour_by_name=colour,
                columns=columns,
                panel_size=size,
            ),
            f"Cumulative service of {who}, counted token by token (`token`). Lines that run together are clients that are "
            "served alike.",
        ),
        "service-rate": (
            small_multiples(
                per_client(rate),
                x_label="time (s)",
                y_label="service per second",
                colour_by_name=colour,
                columns=columns,
                panel_size=size,
            ),
            f"Service per second of {who}, in windows of 60 s (`token`).",
        ),
        "service-difference": (
            small_multiples(
                differences, x_label="time (s)", y_label="difference (service/s)", columns=2, panel_size=(4.7, 3.0)
            ),
            "Service difference in windows of 60 s, by both measures; lower is fairer.",
        ),
        "response-time": (
            small_multiples(
                per_client(response),
                x_label="time (s)",
                y_label="time to first token (s)",
                colour_by_name=colour,
                columns=columns,
                panel_size=size,
            ),
            f"Mean time to first token of {who}, over first tokens within ±30 s. A gap: no first token then.",
        ),
        "throughput": (
            bar_plot(
                {p: {"tok/s": comparison.median(p, "paper", "throughput_tok_s") or 0.0} for p in policies},
                y_label="tokens per second",
            ),
            "Throughput: input and output tokens of served requests over the whole time, the drain included.",
        ),
    }
    bounds = comparison.first(policies[0]).by_measure["token"].bound_2u
    if bounds and len(policies) > 1:
        accumulated = {
            p: {"largest difference": comparison.median(p, "token", "accumulated_diff_max") or 0.0} for p in policies
        }
        figures["accumulated-difference"] = (
            bar_plot({**accumulated, "bound 2U": {"largest difference": bounds}}, y_label="service", is_log_y=True),
            "Largest difference of service between two clients while both were backlogged (`token`), beside the bound 2U.",
        )
    return figures


def fairness_page(comparison: Comparison) -> Page:
    """The whole page."""
    trace, server = comparison.trace, comparison.server
    num_seeds = len({run.seed for run in comparison.runs})
    single = len(comparison.policies) == 1
    title = f"{comparison.policies[0]} on {trace.name}" if single else f"{len(comparison.policies)} policies on {trace.name}"
    page = Page(title, f"{trace.description}. Server `{comparison.profile}`, settings `{server.name}`, simulated.")
    medians = f" Medians over {num_seeds} seeds; plots show the first." if num_seeds > 1 else ""
    if single:
        first = comparison.first(comparison.policies[0]).by_measure["paper"]
        page.tiles(
            [
                ("avg difference (paper)", first.avg_diff, "service per second"),
                ("throughput", first.throughput_tok_s, "tokens per second"),
                ("time to first token", first.ttft_mean_s, f"mean, s; p99 {first.ttft_p99_s or 0.0:.1f} s"),
                ("served", first.served, f"{first.rejected:,} rejected"),
            ]
        )
    page.section("Which measure is which", MEASURES_EXPLAINED)
    if any(policy.partition(":")[0] == "hierarchy" for policy in comparison.policies):
        page.section("Weights under hierarchy", HIERARCHY_EXPLAINED)
    page.section("All policies" if not single else "Measures")
    for measure, what in (("paper", "as published"), ("token", "corrected")):
        headers, rows = comparison_table(comparison, measure)
        page.table(headers, rows, caption=f"Measure {measure} ({what}).{medians}")
    headers, rows = quality_table(comparison)
    page.section("How quickly it answered", QUALITY_EXPLAINED)
    page.table(headers, rows, caption=f"First token within {comparison.slo_ttft_s:g} s; shedding `{comparison.shed}`.{medians}")
    figures = comparison_figures(comparison)
    titles = {
        "cumulative-service": "Cumulative service",
        "service-rate": "Service rate",
        "service-difference": "Service difference",
        "response-time": "Response time",
        "throughput": "Throughput",
        "accumulated-difference": "Against the bound",
    }
    for name, (figure, caption) in figures.items():
        page.section(titles[name]).figure(figure, caption)
    page.section("Clients")
    for policy in comparison.policies:
        page.table(*_client_table(comparison, policy), caption=f"{policy}, measure token, by demand")
    return page


def write_pngs(comparison: Comparison, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every plot as a PNG into the folder, made if need be. Raises ConfigError with the path and the reason."""
    from evenflow.base.errors import ConfigError

    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {target}: {error.strerror or error}") from error
    paths = []
    for name, (figure, _) in comparison_figures(comparison).items():
        write_png(figure, target / f"{name}.png")
        paths.append(target / f"{name}.png")
    return paths


def _log(comparison: Comparison, policy: str):  # type: ignore[no-untyped-def]
    done = comparison.first(policy).replay
    assert done is not None
    return done.log


def _main_clients(comparison: Comparison) -> list[str]:
    """The clients with the largest demand."""
    clients = comparison.first(comparison.policies[0]).by_measure["token"].per_client
    return sorted(clients, key=lambda c: -clients[c].demand)[:MOST_CLIENTS]


def _client_table(comparison: Comparison, policy: str, most: int = 30) -> tuple[list[str], list[list[Cell]]]:
    clients = comparison.first(policy).by_measure["token"].per_client
    rows: list[list[Cell]] = [
        [name, account.demand, account.service, account.share, account.ttft_mean_s]
        for name, account in sorted(clients.items(), key=lambda item: -item[1].demand)[:most]
    ]
    if len(clients) > most:
        rest = sorted(clients.values(), key=lambda account: -account.demand)[most:]
        rows.append(
            [f"{len(rest):,} more", sum(a.demand for a in rest), sum(a.service for a in rest), sum(a.share for a in rest), None]
        )
    return ["client", "demand", "service", "share", "TTFT mean s"], rows
