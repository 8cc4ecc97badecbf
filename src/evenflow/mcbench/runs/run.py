"""Run one configuration: in this process, or as local gloo ranks; make a result of what they emit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evenflow.comm.collectives.links import Link
from evenflow.mcbench.runs.build import task_of
from evenflow.mcbench.runs.compute_threads import compute_threads
from evenflow.mcbench.runs.launch import RanksFailed, launch
from evenflow.mcbench.runs.pretrain import Backbones
from evenflow.mcbench.runs.rank_worker import run_virtual
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.runs.run_versions import versions
from evenflow.mcbench.tasks.scores import mean_and_interval

Progress = Callable[[str], None]


def run(config: RunConfig, progress: Progress = lambda text: None, backbones: Backbones | None = None) -> dict[str, Any]:
    """Run a configuration and return its result. Raises RanksFailed if ranks died before any result existed.

    ``backbones`` remembers pre-training between runs.
    """
    started = time.time()
    task = task_of(config)
    records: list[dict[str, Any]] = []
    failure: str | None = None
    errors: dict[int, str] = {}

    def show(kind: str, value: Any) -> None:
        if line := describe(kind, value):
            progress(line)

    link: dict[str, Any] = {"nominal": config.link, "kind": "virtual ranks" if config.emulate else "unlimited"}
    if config.emulate or config.world_size == 1:

        def emit(kind: str, value: Any) -> None:
            records.append({"kind": kind, "value": value})
            show(kind, value)

        with compute_threads(config.threads):
            run_virtual(config, emit, backbones or Backbones())
    else:
        link_of_run = Link.parse(config.link)
        launched = launch("run", config.to_json(), config.world_size, link_of_run, show, config.threads)
        errors = launched.errors
        records, failure = launched.records, launched.failure
        link["kind"] = launched.link_kind
        if failure and not any(record["kind"] in ("seed", "diverged") for record in records):
            raise RanksFailed(failure, errors)
    result = summarise(config, task, records)
    result["link"] = {**link, "interface_bytes": next((r["value"] for r in records if r["kind"] == "interface"), None)}
    result["wall_s"] = time.time() - started
    if failure:
        result["incomplete"] = failure
        result["errors_by_rank"] = errors
    return result


def summarise(config: RunConfig, task: Any, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the result of a run from the partial results of its rank with the logits.

    Seeds that diverged are listed under ``diverged`` and count in no mean; if all did, the headline is None.
    """
    seeds = [record["value"] for record in records if record["kind"] == "seed"]
    by_kind = {record["kind"]: record["value"] for record in records if record["kind"] != "seed"}
    result: dict[str, Any] = {"parameters": config.to_json(), "key": config.key(), "metric": task.metrics[0]}
    result["diverged"] = [record["value"] for record in records if record["kind"] == "diverged"]
    for name in seeds[0]["scores"]["compressed"] if seeds else ():
        values = [seed["scores"]["compressed"][name] for seed in seeds]
        mean, half = mean_and_interval(values)
        result[name], result[f"{name}_by_seed"], result[f"{name}_interval"] = mean, values, half
    result["scores_by_seed"] = [seed["scores"] for seed in seeds]
    if not seeds:
        headline = task.metrics[0]
        result |= {headline: None, f"{headline}_by_seed": [], f"{headline}_interval": None}
    result["dense_at_eval"] = {
        name: mean_and_interval([seed["scores"]["dense"][name] for seed in seeds])[0]
        for name in (seeds[0]["scores"]["dense"] if seeds else ())
    }
    result["seeds"] = [seed["seed"] for seed in seeds]
    if len(seeds) == 1:
        result["note"] = "one seed: no interval, and differences of a few points mean nothing"
    measured = by_kind.get("measured", {})
    result["bytes_per_step"] = measured.get("bytes_per_step", by_kind.get("bytes_per_step", {}))
    result["ms_per_iteration"] = measured.get("ms_per_iteration", {})
    result["achieved_gbit_s"] = measured.get("achieved_gbit_s")
    result["interface_bytes_per_step"] = measured.get("interface_bytes_per_step")
    result["raw_total_ms"] = measured.get("raw_total_ms", [])
    result["parity"] = {name: by_kind[name] for name in ("parity", "pipeline_parity") if name in by_kind}
    result["data"] = {"task": task.name, "sha256": task.sha256, "is_pinned": task.is_pinned}
    result["threads"] = config.threads
    result["versions"] = versions()
    return result


def describe(kind: str, value: Any) -> str:
    """Return a line about a partial result; empty for those that the summary shows."""
    if kind == "seed":
        scores = ", ".join(f"{name} {score:.4f}" for name, score in value["scores"]["compressed"].items())
        return f"seed {value['seed']}: {scores}"
    if kind == "diverged":
        return f"seed {value['seed']}: {value['reason']}"
    if kind == "measured":
        return f"{value['ms_per_iteration']['total']:.1f} ms per iteration"
    if kind == "pipeline_parity":
        return f"pipeline parity: {value['error']:.1e}"
    if kind == "parity":
        return f"parity: outputs {value['output_error']:.1e}, gradients {value['gradient_error']:.1e}"
    if kind == "step":
        return f"seed {value['seed']}: {value['what']}, step {value['step']} of {value['num_steps']}, loss {value['loss']:.4f}"
    return ""
