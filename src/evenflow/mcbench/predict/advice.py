"""Which compressor pays for a model on a link: predicted times, break-even sizes, and the accuracy it cost where tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.mcbench.predict.cost_model import break_even_bytes, exchange_s
from evenflow.mcbench.predict.machine import Machine
from evenflow.mcbench.runs.benchmark_models import hidden_of
from evenflow.mcbench.tasks.scores import baseline_key, mean_and_interval


def advise(machine: Machine, model: str, tp: int, tokens: int, results: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Return the advice, line by line, best first. Raises ConfigError for a single rank."""
    if tp < 2:
        raise ConfigError(f"tp is {tp}; with one rank nothing is sent")
    width = hidden_of(model)
    dense = exchange_s(machine, "none", tokens, width, tp)
    timed = sorted((exchange_s(machine, spec, tokens, width, tp), spec) for spec in machine.encode)
    lines = [
        f"predicted for one sum of [{tokens}, {width}] fp32 over {tp} ranks on {machine.link} ({machine.link_kind}):",
        f"{'none':<20}{1e3 * dense:8.2f} ms",
    ]
    for time_s, spec in timed:
        edge = break_even_bytes(machine, spec, tp, width)
        where = f"pays from {_size(edge)}" if edge else "does not pay up to 1 GiB"
        lines.append(f"{spec:<20}{1e3 * time_s:8.2f} ms  x{dense / time_s:.2f}  {where}; {_evidence(spec, results)}")
    best_s, best = timed[0]
    if best_s < dense:
        lines.append(f"fastest: {best}. Check its accuracy on your task before you rely on it.")
    else:
        lines.append("compression does not pay here: the link is fast enough, or the messages are too small.")
    return lines


def _size(count: int) -> str:
    """Return a power of two of bytes in the largest unit that keeps it whole."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:g} {unit}"
    return f"{count} B"


def _evidence(spec: str, results: Sequence[Mapping[str, Any]]) -> str:
    dense = {baseline_key(r): r for r in results if r["parameters"]["compress"] == "none"}
    found = []
    for result in results:
        p = result["parameters"]
        specs = {rule.partition("=")[2].partition("/")[0].strip() for rule in p["compress"].split(";")}
        if specs != {spec} or baseline_key(result) not in dense:
            continue
        name, baseline = result["metric"], dense[baseline_key(result)]
        base = dict(zip(baseline["seeds"], baseline[f"{name}_by_seed"]))
        pairs = [v - base[s] for s, v in zip(result["seeds"], result[f"{name}_by_seed"]) if s in base]
        if pairs:
            mean, half = mean_and_interval(pairs)
            spread = f" ± {half:.4f}" if half is not None else " (one seed)"
            found.append(f"{name} on {p['task']} with {p['compress']} {mean:+.4f}{spread}")
    return "evidence: " + (", ".join(found) if found else "none (give --results)")
