"""The process that measures: ``python -m evenflow.bench.lora.measuring_process`` answers one JSON line per JSON line.

It has the engine's thread settings, owns the model and the runs, and decides nothing: ``{"do": NAME, ...}`` calls the
method of that name. An error answers ``{"error": text, "kind": name}`` and the process goes on.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from evenflow.base.errors import EvenFlowError
from evenflow.base.openmp import share_openmp


class Child:
    """One testbed and its runs by name."""

    def __init__(self) -> None:
        self._testbed: Any = None
        self._runs: dict[str, Any] = {}

    def open(self, setting: str, cache_dir: str, num_adapters: int, **options: Any) -> dict[str, Any]:
        """Make (or find) model and adapters; drops all runs."""
        from evenflow.bench.lora.testbed import RandomTestbed

        for name in list(self._runs):
            self.drop(name)
        if options.get("lora_ranks"):
            options["lora_ranks"] = tuple(options["lora_ranks"])
        self._testbed = RandomTestbed(setting, Path(cache_dir), num_adapters=num_adapters, **options)
        self._testbed.adapters.touch()
        layout = self._testbed.layout
        return {
            "adapter_bytes": self._testbed.adapters.size_bytes,
            "dtype": str(self._testbed.dtype).removeprefix("torch."),
            "page_bytes": layout.page_bytes,
            "page_tokens": layout.page_tokens,
            "anonymous_bytes": anonymous_bytes(),
        }

    def bandwidth(self) -> dict[str, Any]:
        """Bytes per second read and copied."""
        from evenflow.bench.lora.testbed import bandwidth

        return bandwidth()

    def make_run(
        self, name: str, variant: str, memory_bytes: int, max_model_len: int, policy: str, shed: str
    ) -> dict[str, Any]:
        """Make a run; one of that name is dropped."""
        from evenflow.bench.lora.run import Run
        from evenflow.bench.lora.variants import variant as make_variant

        self.drop(name)
        self._runs[name] = Run(self._testbed, make_variant(variant), memory_bytes, max_model_len, policy, shed)
        return {}

    def drop(self, name: str) -> dict[str, Any]:
        """Forget a run and its arena."""
        run = self._runs.pop(name, None)
        if run is not None:
            run.close()
        return {}

    def fill(self, name: str, num_adapters: int) -> dict[str, Any]:
        """Make adapters resident before anything is measured."""
        self._runs[name].fill(num_adapters)
        return {}

    def saturate(self, name: str, point: dict[str, Any], seed: int = 0, adapter: str | None = None) -> dict[str, Any]:
        """Give the run requests without end, drawn as the point says; ``adapter``: all of them to this one."""
        from evenflow.bench.lora.load import endless, point_of

        rows = endless(point_of(point), seed)
        self._runs[name].saturate(rows if adapter is None else (replace(row, adapter=adapter) for row in rows))
        return {}

    def hold(self, name: str, adapters: list[str], output_len: int) -> dict[str, Any]:
        """Start one long request for each of these adapters: a batch that stays what it is."""
        from evenflow.bench.replay.trace import TraceRow

        self._runs[name].saturate(iter([TraceRow(0.0, adapter, 8, output_len, adapter) for adapter in adapters]))
        return {}

    def advance(self, name: str, num_steps: int) -> dict[str, Any]:
        """Compute steps of a saturated run."""
        return asdict(self._runs[name].advance(num_steps))

    def drain(self, name: str, rows: list[list[Any]], keep_outputs: bool = False) -> dict[str, Any]:
        """Serve a fixed set of requests: [input tokens, output tokens, adapter or null] each."""
        from evenflow.bench.replay.trace import TraceRow

        run = self._runs[name]
        run.keep_outputs = keep_outputs
        counts = run.drain([TraceRow(0.0, adapter or "base", inputs, outputs, adapter) for inputs, outputs, adapter in rows])
        return {**asdict(counts), "outputs": run.outputs if keep_outputs else {}}

    def serve(self, name: str, point: dict[str, Any], seed: int = 0) -> dict[str, Any]:
        """Serve the point's requests by the clock."""
        from evenflow.bench.lora.load import point_of, trace_of
        from evenflow.fairness.measures.slo import measure_quality

        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        chosen = point_of(point)
        records, counts = self._runs[name].serve(trace_of(chosen, seed))
        disk_reads = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
        quality = measure_quality(records, counts.seconds, rate=chosen.rate)
        return {**asdict(quality), **asdict(counts), "disk_reads": disk_reads}

    def memory(self, name: str) -> dict[str, Any]:
        """What the run's arena and this process hold."""
        run = self._runs[name]
        snapshot = run.scheduler.snapshot()
        resident = [run.residency.record(digest) for digest in run.residency.residents()]
        return {
            "num_pages": snapshot.num_pages,
            "num_kv_pages": snapshot.num_kv_pages,
            "num_adapter_pages": snapshot.num_adapter_pages,
            "num_resident": len(resident),
            "row_bytes": sum(record.size_bytes for record in resident),
            "page_bytes": self._testbed.layout.page_bytes,
            "anonymous_bytes": anonymous_bytes(),
        }

    def process(self) -> dict[str, Any]:
        """Memory of this process."""
        return {"anonymous_bytes": anonymous_bytes()}

    def operators(self, case: dict[str, Any], repeats: int) -> dict[str, Any]:
        """Time every LoRA backend at one site."""
        from evenflow.bench.lora.operators import measure

        return measure(self._testbed, case, repeats)


def anonymous_bytes() -> int:
    """Memory of this process that no file backs; 0 where the system does not say."""
    status = Path(f"/proc/{os.getpid()}/status")
    if not status.exists():
        return 0
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return 1024 * int(fields.get("RssAnon", "0 kB").split()[0])


def main() -> int:
    """Serve calls from stdin until it closes."""
    share_openmp()
    import torch

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else prints must not look like an answer
    child = Child()
    print(json.dumps({"ready": True, "threads": torch.get_num_threads()}), file=answers, flush=True)
    for line in sys.stdin:
        call = json.loads(line)
        name = call.pop("do")
        assert not name.startswith("_"), name
        try:
            answer = getattr(child, name)(**call)
        except EvenFlowError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
