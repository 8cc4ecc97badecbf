"""What each of the paper's settings, and each later method, costs in accuracy: the suites of ``evenflow mcbench``, in one file.

    evenflow mcbench suite paper --out results/paper --budget 60m
    python benchmarks/recipes/accuracy.py results/paper --json benchmarks/results/accuracy-paper--MACHINE.json
    evenflow mcbench report benchmarks/results/accuracy-paper--MACHINE.json --html report.html

Virtual ranks in one process, which give the bits of real ones; seeds paired with the dense run. Scores do not depend on how
busy the machine is, so a suite may run in pieces: configurations that have a result are not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evenflow.bench.harness import write_result
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.suites.suite import read_results


def compact(result: dict[str, Any]) -> dict[str, Any]:
    """Return a run without what can be derived: parameters that differ from the defaults, scores by seed, bytes."""
    metric = result["metric"]
    default = RunConfig().to_json()
    keep = ("key", "metric", metric, f"{metric}_by_seed", f"{metric}_interval", "dense_at_eval", "seeds", "bytes_per_step")
    always = ("task", "tp", "pp", "compress", "layers", "emulate")
    parameters = {n: v for n, v in result["parameters"].items() if v != default.get(n) or n in always}
    return {"parameters": parameters, **{name: result[name] for name in keep}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    results, failures = read_results(args.folder)
    first = results[0]
    parameters = {"data": first["data"], "versions": first["versions"], "width": first["parameters"]["hidden"]}
    runs = sorted((compact(result) for result in results), key=lambda run: str(run["parameters"]))
    write_result(args.json, "accuracy", parameters, {"runs": runs, "failed": [f["parameters"] for f in failures]})


if __name__ == "__main__":
    main()
