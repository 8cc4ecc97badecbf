"""Run one configuration: in this process, or as local gloo ranks that it starts; collect a result from what they emit.

Ranks write one JSON line per partial result, so a rank that dies costs only what was not finished.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from evenflow import __version__
from evenflow.base.errors import WireError
from evenflow.comm.links import Link, NamespaceLinks, why_no_namespaces
from evenflow.mcbench.config import RunConfig
from evenflow.mcbench.metrics import mean_and_interval
from evenflow.mcbench.worker import run_virtual, task_of

Progress = Callable[[str], None]


def run(config: RunConfig, progress: Progress = lambda text: None) -> dict[str, Any]:
    """Run a configuration and return its result. Raises WireError if ranks died before any result existed."""
    started = time.time()
    task = task_of(config)
    records: list[dict[str, Any]] = []
    failure: str | None = None
    link: dict[str, Any] = {"nominal": config.link, "kind": "virtual ranks" if config.emulate else "unlimited"}
    if config.emulate or config.world_size == 1:

        def emit(kind: str, value: Any) -> None:
            records.append({"kind": kind, "value": value})
            progress(_describe(kind, value))

        run_virtual(config, emit)
    else:
        failure = _run_ranks(config, records, link, progress)
        if failure and not any(record["kind"] == "seed" for record in records):
            raise WireError(failure)
    result = summarise(config, task, records)
    result["link"] = {**link, "interface_bytes": next((r["value"] for r in records if r["kind"] == "interface"), None)}
    result["wall_s"] = time.time() - started
    if failure:
        result["incomplete"] = failure
    return result


def summarise(config: RunConfig, task: Any, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the result of a run from the partial results of its rank with the logits."""
    seeds = [record["value"] for record in records if record["kind"] == "seed"]
    by_kind = {record["kind"]: record["value"] for record in records if record["kind"] != "seed"}
    result: dict[str, Any] = {"parameters": config.to_json(), "key": config.key(), "metric": task.metrics[0]}
    for name in seeds[0]["scores"]["compressed"]:
        values = [seed["scores"]["compressed"][name] for seed in seeds]
        mean, half = mean_and_interval(values)
        result[name], result[f"{name}_by_seed"], result[f"{name}_interval"] = mean, values, half
    result["scores_by_seed"] = [seed["scores"] for seed in seeds]
    result["dense_at_eval"] = {
        name: mean_and_interval([seed["scores"]["dense"][name] for seed in seeds])[0] for name in seeds[0]["scores"]["dense"]
    }
    result["seeds"] = [seed["seed"] for seed in seeds]
    if len(seeds) == 1:
        result["note"] = "one seed: no interval, and differences of a few points mean nothing"
    measured = by_kind.get("measured", {})
    result["bytes_per_step"] = measured.get("bytes_per_step", by_kind.get("bytes_per_step", {}))
    result["ms_per_iteration"] = measured.get("ms_per_iteration", {})
    result["achieved_gbit_s"] = measured.get("achieved_gbit_s")
    result["raw_total_ms"] = measured.get("raw_total_ms", [])
    result["parity"] = {name: by_kind[name] for name in ("parity", "pipeline_parity") if name in by_kind}
    result["data"] = {"task": task.name, "sha256": task.sha256, "is_pinned": task.is_pinned}
    result["versions"] = versions()
    return result


def versions() -> dict[str, str]:
    """Return what the numbers depend on besides the configuration."""
    import transformers

    return {
        "evenflow": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def _run_ranks(config: RunConfig, records: list[dict[str, Any]], link: dict[str, Any], progress: Progress) -> str | None:
    """Start the ranks, follow their records, and return why they failed, or None. Mutates ``records`` and ``link``."""
    wanted = Link.parse(config.link)
    with tempfile.TemporaryDirectory(prefix="evenflow-") as folder_name, ExitStack() as stack:
        folder = Path(folder_name)
        (folder / "config.json").write_text(json.dumps(config.to_json()))
        spaces: NamespaceLinks | None = None
        shape_in_transport = False
        if wanted.bit_per_s is not None:
            why = why_no_namespaces()
            if why is None:
                spaces = stack.enter_context(NamespaceLinks(config.world_size, wanted))
                link["kind"] = "network namespaces, tc tbf"
            else:
                shape_in_transport = True
                link["kind"] = f"emulated: token bucket in the transport ({why})"
        before = [spaces.sent_bytes(rank) for rank in range(config.world_size)] if spaces else []
        children = [
            stack.enter_context(_started(folder, rank, config, spaces, shape_in_transport)) for rank in range(config.world_size)
        ]
        failure = _follow(children, folder, records, progress)
        if spaces:
            after = [spaces.sent_bytes(rank) for rank in range(config.world_size)]
            records.append({"kind": "interface", "value": [b - a for a, b in zip(before, after)]})
        return failure


def _started(folder: Path, rank: int, config: RunConfig, spaces: NamespaceLinks | None, shape: bool) -> subprocess.Popen[bytes]:
    threads = max(1, (os.cpu_count() or 1) // config.world_size)
    command = [sys.executable, "-m", "evenflow.mcbench.rank", str(folder), str(rank), str(threads)]
    command += [spaces.interface if spaces else "lo", "shape" if shape else "free"]
    errors = (folder / f"errors{rank}").open("wb")
    return subprocess.Popen([*(spaces.prefix(rank) if spaces else []), *command], stdout=errors, stderr=errors)


def _follow(
    children: Sequence[subprocess.Popen[bytes]], folder: Path, records: list[dict[str, Any]], progress: Progress
) -> str | None:
    """Read records until all ranks have ended. One that fails ends the others."""
    path, position = folder / "records.jsonl", 0
    failure: str | None = None
    try:
        while True:
            codes = [child.poll() for child in children]
            if path.exists():
                with path.open() as file:
                    file.seek(position)
                    for line in iter(file.readline, ""):
                        if not line.endswith("\n"):
                            break
                        position += len(line.encode())
                        records.append(json.loads(line))
                        progress(_describe(records[-1]["kind"], records[-1]["value"]))
            if all(code is not None for code in codes):
                break
            failed = [rank for rank, code in enumerate(codes) if code]
            if failed:
                time.sleep(1.0)  # the others notice by themselves and say why
                break
            time.sleep(0.05)
        bad = [rank for rank, child in enumerate(children) if child.poll()]
        if bad:
            failure = "; ".join(f"rank {rank} failed: {_last_words(folder / f'errors{rank}')}" for rank in bad)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
    return failure


def _last_words(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _describe(kind: str, value: Any) -> str:
    if kind == "seed":
        scores = ", ".join(f"{name} {score:.4f}" for name, score in value["scores"]["compressed"].items())
        return f"seed {value['seed']}: {scores}"
    if kind == "measured":
        return f"{value['ms_per_iteration']['total']:.1f} ms per iteration"
    if kind == "pipeline_parity":
        return f"pipeline parity: {value['error']:.1e}"
    if kind == "parity":
        return f"parity: outputs {value['output_error']:.1e}, gradients {value['gradient_error']:.1e}"
    return kind
