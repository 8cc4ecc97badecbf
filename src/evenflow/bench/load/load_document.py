"""A load as people read it, in tables, and as programs do, in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from evenflow.bench.harness import result_document
from evenflow.bench.load.figures import Objectives, SentRequest
from evenflow.bench.load.open_loop import LoadRun
from evenflow.report.tables import Cell, TerminalTable, table_terminal

_LATENCIES = {
    "ttft_s": "time to first token",
    "itl_s": "inter-token latency",
    "tpot_s": "time per output token",
    "e2e_s": "end to end",
    "sent_late_s": "sent after it was due",
}


def load_tables(figures: Mapping[str, Any], objectives: Objectives) -> list[TerminalTable]:
    """Totals, latencies in milliseconds, clients, and failures if there were any."""
    objective_s = (("first token", objectives.ttft_s), ("per token", objectives.tpot_s), ("whole", objectives.e2e_s))
    wanted = ", ".join(f"{name} {limit * 1e3:g} ms" for name, limit in objective_s if limit is not None)
    totals: list[list[Cell]] = [
        ["requests answered / sent", f"{figures['num_ok']} / {figures['num_requests']}"],
        ["seconds", round(figures["seconds"], 2)],
        ["requests/s", round(figures["requests_per_s"], 3)],
        ["output tokens/s", round(figures["output_tokens_per_s"], 1)],
        ["prompt tokens/s", round(figures["prompt_tokens_per_s"], 1)],
        [f"goodput, requests/s ({wanted or 'no objective'})", round(figures["goodput_requests_per_s"], 3)],
        ["requests within it", f"{100 * figures['goodput_share']:.1f} %"],
    ]
    if figures["num_cut_off"]:
        totals.append(["cut off at the end", figures["num_cut_off"]])
    columns = next((list(figures[name]) for name in _LATENCIES if figures[name]), [])
    latencies: list[list[Cell]] = [
        [text, *(round(1e3 * figures[name][column], 1) for column in columns)]
        for name, text in _LATENCIES.items()
        if figures[name]
    ]
    tables = [table_terminal(["load", ""], totals)]
    if latencies:
        tables.append(table_terminal(["milliseconds", *columns], latencies))
    tables.append(_clients_table(figures["fairness"]))
    if figures["errors"]:
        rows: list[list[Cell]] = [[kind, error["count"], error["example"][:120]] for kind, error in figures["errors"].items()]
        tables.append(table_terminal(["failure", "requests", "the first one"], rows))
    return tables


def _clients_table(fairness: Mapping[str, Any]) -> TerminalTable:
    rows: list[list[Cell]] = []
    for name, client in fairness["clients"].items():
        ttft = client["ttft_s"]
        middle, last = (round(1e3 * ttft[key], 1) for key in ("mean", "max")) if ttft else (None, None)
        rows.append(
            [
                name, client["num_ok"], client["num_requests"], client["num_good"], round(client["service"]),
                f"{100 * client['share']:.1f} %", f"{100 * client['share_while_all_wait']:.1f} %", middle, last,
            ]
        )  # fmt: skip
    headers = ["client", "answered", "sent", "good", "service", "share", "while all wait", "first token, ms: mean", "largest"]
    title = f"service difference {fairness['service_difference']:.0f}, Jain's index {fairness['jain']:.3f}"
    return table_terminal(headers, rows, title=title)


def load_document(run: LoadRun, figures: Mapping[str, Any], parameters: Mapping[str, Any], *, is_detailed: bool) -> str:
    """JSON: parameters, hardware of the machine that sent, figures, and a row for every request."""
    document = result_document(
        "load", parameters, {**figures, "is_interrupted": run.is_interrupted, "num_planned": run.num_planned}
    )
    document["requests"] = [_row(request, run.began_s, is_detailed) for request in run.requests]
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _row(request: SentRequest, began_s: float, is_detailed: bool) -> dict[str, Any]:
    reply = request.reply
    row = {
        "client": request.client,
        "model": request.model,
        "due_s": round(request.due_s - began_s, 6),
        "sent_s": round(reply.sent_s - began_s, 6),
        "ttft_s": request.ttft_s,
        "tpot_s": request.tpot_s,
        "e2e_s": request.e2e_s,
        "prompt_tokens": reply.prompt_tokens,
        "output_tokens": request.output_tokens,
        "outcome": request.outcome,
        "message": request.message,
    }
    if is_detailed:
        row["token_times_s"] = [round(time_s - began_s, 6) for time_s in reply.token_times_s]
    return row
