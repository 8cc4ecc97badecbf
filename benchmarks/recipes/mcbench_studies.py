"""Break-even of single sums, the rank of activations, compressed sums in serving: one result file each.

    python benchmarks/recipes/mcbench_studies.py --folder studies --machine MACHINE --results benchmarks/results

Runs `evenflow mcbench suite` for what FOLDER does not hold yet and collects what is there: break-even over links and
numbers of ranks (predicted, then measured), activation-rank over the built-in tasks, serving. Four ranks on two cores
share them, and say so by their times.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from evenflow.bench.harness import write_result
from evenflow.cli.main import main as evenflow
from evenflow.mcbench.names import STUDIES, TASKS


def commands(links: str, ranks: str) -> dict[str, list[list[str]]]:
    return {
        "break-even": [["--link", links, "--ranks", ranks]],
        "activation-rank": [["--task", task] for task in TASKS],
        "serving": [[]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--machine", required=True, help="short name of this machine in file names")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--links", default="100mbit,1gbit,unlimited")
    parser.add_argument("--ranks", default="2")
    parser.add_argument("--only", choices=STUDIES)
    args = parser.parse_args()
    for name, runs in commands(args.links, args.ranks).items():
        if args.only not in (None, name):
            continue
        for words in runs:
            status = evenflow(["mcbench", "suite", name, "--out", str(args.folder), *words])
            if status:
                raise SystemExit(status)
        paths = sorted(args.folder.glob(f"study-{name}-*.json"))
        studies = {path.stem.removeprefix(f"study-{name}-"): json.loads(path.read_text()) for path in paths}
        results: dict[str, Any] = {"studies": studies}
        said = sorted(args.folder.glob(f"prediction-{name}-*.json"))
        if said:
            results["predictions"] = {
                path.stem.removeprefix(f"prediction-{name}-"): json.loads(path.read_text()) for path in said
            }
        parameters = {"runs": runs, "studies": list(studies)}
        write_result(args.results / f"{name.replace('-', '_')}--{args.machine}.json", name, parameters, results)


if __name__ == "__main__":
    main()
