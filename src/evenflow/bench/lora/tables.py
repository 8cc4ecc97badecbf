"""From samples to figures that can be compared: medians over rounds, ratios within a round, what traffic explains."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evenflow.report.tables import Cell

Samples = Sequence[Mapping[str, Any]]
BASELINE = "unified"


def output_tokens_per_s(sample: Mapping[str, Any]) -> float:
    """Output tokens per second."""
    return float(sample["output_tokens"]) / float(sample["seconds"])


def median_of(samples: Samples, measure: Callable[[Mapping[str, Any]], float | None]) -> float | None:
    """Median over the samples that have it."""
    values = [value for value in map(measure, samples) if value is not None]
    return statistics.median(values) if values else None


def of(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    """The sample's figure of that name."""
    return lambda sample: sample.get(name)


def paired(above: Samples, below: Samples, measure: Callable[[Mapping[str, Any]], float]) -> list[float]:
    """Ratios of samples of the same round."""
    by_round = {sample["round"]: sample for sample in below}
    return [measure(sample) / measure(by_round[sample["round"]]) for sample in above if sample["round"] in by_round]


def in_all(samples: Samples, others: Samples) -> dict[str, float]:
    """Sums over the samples whose round ``others`` have too: one long run, cut into pieces that took turns."""
    rounds = {sample["round"] for sample in others}
    common = [sample for sample in samples if sample["round"] in rounds]
    names = ("seconds", "steps", "output_tokens", "adapter_bytes", "loaded_bytes")
    return {name: sum(float(sample[name]) for sample in common) for name in names}


def total_ratio(above: Samples, below: Samples) -> float | None:
    """Throughput of ``above`` over ``below``, over all their common rounds: single rounds have other requests and ranks."""
    a, b = in_all(above, below), in_all(below, above)
    return output_tokens_per_s(a) / output_tokens_per_s(b) if b["seconds"] else None


def per_step(sample: Mapping[str, Any], name: str) -> float:
    """A sum over steps as a mean per step."""
    return float(sample[name]) / max(1, int(sample["steps"]))


def explained(sample: Mapping[str, Any], reference: Mapping[str, Any], bandwidth: Mapping[str, float]) -> float:
    """What share of its time the sample's additional traffic would take at the machine's own speed, read and copied."""
    read = per_step(sample, "adapter_bytes") - per_step(reference, "adapter_bytes")
    copied = per_step(sample, "loaded_bytes") - per_step(reference, "loaded_bytes")
    return (read / bandwidth["read"] + copied / bandwidth["copy"]) / per_step(reference, "seconds")


def explained_ratio(above: Samples, below: Samples, bandwidth: Mapping[str, float]) -> float | None:
    """Throughput of ``above`` over ``below`` that the difference in traffic alone would give, over their common rounds."""
    a, b = in_all(above, below), in_all(below, above)
    return 1 / (1 + explained(a, b, bandwidth)) if b["seconds"] else None


def bandwidth_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Medians of what was measured whenever the suite was opened: bytes per second."""
    measured = result["bandwidth"]
    return {name: statistics.median(one[name] for one in measured) for name in ("read", "copy")}


def ordered_cases(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Cases along the axis."""
    return sorted(result["cases"].items(), key=lambda item: item[1]["x"])


def variants_of(result: Mapping[str, Any]) -> list[str]:
    """Every variant that has a sample, in the order of its first."""
    return list(dict.fromkeys(name for case in result["cases"].values() for name in case["samples"]))


Table = tuple[list[str], list[list[Cell]]]


def suite_table(result: Mapping[str, Any]) -> Table:
    """Headers and rows of one suite's result."""
    return _TABLES[result["method"]](result)


def _saturated(result: Mapping[str, Any]) -> Table:
    headers = [
        result["axis"], "variant", "rounds", "tokens/s", "of first case", "traffic explains", "of unified",
        "running", "adapters in batch", "MB read/step", "MB loaded/step", "preempted",
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    cases, bandwidth = ordered_cases(result), bandwidth_of(result)
    for label, case in cases:
        for name, samples in case["samples"].items():
            first = next((c["samples"][name] for _, c in cases if name in c["samples"]), samples)
            base = case["samples"].get(BASELINE, samples)
            rows.append(
                [
                    label,
                    name,
                    len(samples),
                    median_of(samples, output_tokens_per_s),
                    total_ratio(samples, first),
                    explained_ratio(samples, first, bandwidth),
                    total_ratio(samples, base),
                    median_of(samples, lambda s: per_step(s, "sequences")),
                    median_of(samples, lambda s: per_step(s, "distinct")),
                    median_of(samples, lambda s: per_step(s, "adapter_bytes") / 1e6),
                    statistics.mean(per_step(s, "loaded_bytes") / 1e6 for s in samples),
                    sum(int(s["preemptions"]) for s in samples),
                ]
            )
    return headers, rows


def _by_the_clock(result: Mapping[str, Any]) -> Table:
    headers = [
        result["axis"], "variant", "rounds", "requests/s", "strip", "TTFT mean s", "TTFT p90 s", "attainment", "satisfaction",
        "turned away", "MB read/step", "MB loaded/step",
    ]  # fmt: skip
    names = (
        "throughput_req_s", "strip_throughput_req_s", "ttft_mean_s", "ttft_p90_s", "slo_attainment", "satisfaction_mean",
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for label, case in ordered_cases(result):
        for name, samples in case["samples"].items():
            figures: list[Cell] = [median_of(samples, of(measure)) for measure in names]
            away = sum(int(s["num_shed"]) + int(s["num_rejected"]) for s in samples)
            read = median_of(samples, lambda s: per_step(s, "adapter_bytes") / 1e6)
            loaded = median_of(samples, lambda s: per_step(s, "loaded_bytes") / 1e6)
            rows.append([label, name, len(samples), *figures, away, read, loaded])
    return headers, rows


def _fixed(result: Mapping[str, Any]) -> Table:
    headers = [result["axis"], "variant", "rounds", "tokens/s", "of unified"]
    rows: list[list[Cell]] = []
    for label, case in ordered_cases(result):
        base = case["samples"].get(BASELINE)
        for name, samples in case["samples"].items():
            ratio = statistics.median(paired(samples, base or samples, output_tokens_per_s) or [1.0])
            rows.append([label, name, len(samples), median_of(samples, output_tokens_per_s), ratio])
    return headers, rows


def _footprint(result: Mapping[str, Any]) -> Table:
    headers = [
        "ranks", "variant", "adapters", "rows MB", "pages", "pages MB", "beyond rows %", "tails %", "pages/adapter beyond rows",
        "arena MB", "anonymous before MB", "anonymous MB",
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for label, case in ordered_cases(result):
        for name, samples in case["samples"].items():
            one = samples[-1]
            held = one["num_adapter_pages"] * one["page_bytes"]
            beyond = held - one["row_bytes"]
            rows.append(
                [
                    label,
                    name,
                    one["num_resident"],
                    one["row_bytes"] / 1e6,
                    one["num_adapter_pages"],
                    held / 1e6,
                    100 * beyond / one["row_bytes"],
                    100 * max(0, beyond - one["num_resident"] * one["page_bytes"]) / one["row_bytes"],
                    beyond / one["page_bytes"] / max(1, one["num_resident"]),
                    one["arena_bytes"] / 1e6,
                    one["anonymous_before_bytes"] / 1e6,
                    one["anonymous_bytes"] / 1e6,
                ]
            )
    return headers, rows


def _operators(result: Mapping[str, Any]) -> Table:
    headers = ["case", "variant", "us", "p10", "p90", "GB/s of useful bytes", "times unified"]
    rows: list[list[Cell]] = []
    for label, case in ordered_cases(result):
        base = case["samples"].get(BASELINE)
        for name, samples in case["samples"].items():
            times = sorted(samples[-1]["seconds_all"])
            middle = statistics.median(times)
            ratio = None
            if base is not None:
                ratio = statistics.median(a / b for a, b in zip(samples[-1]["seconds_all"], base[-1]["seconds_all"]))
            tenth = len(times) // 10
            rate = samples[-1]["bytes"] / middle / 1e9
            rows.append([label, name, 1e6 * middle, 1e6 * times[tenth], 1e6 * times[-1 - tenth], rate, ratio])
    return headers, rows


_TABLES: Mapping[str, Callable[[Mapping[str, Any]], Table]] = {
    "saturated": _saturated,
    "clock": _by_the_clock,
    "fixed": _fixed,
    "footprint": _footprint,
    "operators": _operators,
}
