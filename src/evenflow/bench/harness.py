"""How a benchmark is run and kept: interleaved repeats, medians, one JSON per scenario and machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from evenflow.base.children import ChildProcess

_STOP_S = 10.0
"""How long a peer may take to end once its input has ended."""


def interleave(variants: Mapping[str, Callable[[], float]], repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Run the variants in turn (A B C A B C ...), so that a slow minute of the machine hits all; samples by variant.

    Each callable returns its own measure. ``warm_up`` rounds are run and dropped.
    """
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(warm_up + repeats):
        for name, run in variants.items():
            value = run()
            if round_number >= warm_up:
                samples[name].append(value)
                print(f"  {name}: {value:.4g}", file=sys.stderr, flush=True)
    return samples


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median with p10 and p90."""
    ordered = sorted(samples)

    def quantile(q: float) -> float:
        return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]

    return {"median": statistics.median(ordered), "p10": quantile(0.1), "p90": quantile(0.9)}


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios of neighbouring samples: robust against the machine's slow minutes."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def hardware() -> dict[str, Any]:
    """What the machine is, in words, and the versions of what ran on it."""
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    flags = ""
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        names = {key.strip(): value.strip() for key, value in fields.items()}
        cpu, flags = names.get("model name", cpu), names.get("flags", "")
    packages = {}
    for package in ("torch", "numba", "numpy", "transformers", "peft", "triton"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "bf16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags.split()],
        "python": platform.python_version(),
        "packages": packages,
    }


def write_result(path: Path, scenario: str, parameters: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """One JSON file with everything needed to judge the numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result_document(scenario, parameters, results), indent=1) + "\n")


def result_document(scenario: str, parameters: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """What ``write_result`` writes."""
    return {
        "scenario": scenario,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "parameters": dict(parameters),
        "results": dict(results),
    }


class JsonChild:
    """A child that answers one JSON line per JSON line: how a benchmark speaks to a peer.

    ``name`` is what messages call it; ``stderr``: as for subprocess. Its first line says that it is ready.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        *,
        environment: Mapping[str, str] | None = None,
        stderr: IO[Any] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._name = name
        self._process = ChildProcess(
            command,
            environment={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        self.ready = self._read(timeout_s)

    def ask(self, question: Mapping[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        """Send one line, wait for the answer. Raises RuntimeError if the child has ended or is silent for too long."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        return self._read(timeout_s)

    def close(self) -> None:
        """End the child. Idempotent."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.end(_STOP_S)

    def _read(self, timeout_s: float | None = None) -> dict[str, Any]:
        assert self._process.stdout is not None
        # One answer is under way at a time, so that nothing of it can lie in the reader's own buffer already.
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            self._process.end()
            raise RuntimeError(f"the peer {self._name} said nothing for {timeout_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            self._process.end(_STOP_S)
            raise RuntimeError(f"the peer {self._name} ended with {self._process.ended_how}")
        return json.loads(line)


class JsonProcess(JsonChild):
    """Such a child that is a module of this environment."""

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        super().__init__([sys.executable, "-m", module, *arguments], module, environment=environment)
