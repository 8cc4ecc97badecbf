"""The tables and figures of the three papers, each by one command; all that begin within an hour by `make papers`.

    make papers                      # all of it, into ./papers; the same command continues
    python benchmarks/papers.py --only vtc-figure-3 --out FOLDER
    python benchmarks/papers.py --only vtc --trace TRACE.csv

docs/papers.md says what is scaled, and what cannot be had offline. A command whose output is there is not run again. Exits
with 1 if any of them failed; the others are run all the same.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Step:
    """One table or figure. ``command``: after ``evenflow``, or a recipe; OUT is the output's name, without a suffix."""

    paper: str
    name: str
    shows: str
    command: str

    def words(self, out: Path, trace: Path | None) -> list[str]:
        """The command as it is run, or nothing if it needs a trace that was not given."""
        if "TRACE" in self.command and trace is None:
            return []
        filled = self.command.replace("OUT", str(out / f"{self.paper}-{self.name}")).replace("TRACE", str(trace))
        words = shlex.split(filled)
        if words[0].endswith(".py"):
            return [sys.executable, str(ROOT / "benchmarks" / "recipes" / words[0]), *words[1:]]
        return [sys.executable, "-m", "evenflow", *words]

    def output(self, out: Path) -> Path:
        """The file or folder that says that it was run."""
        suffix = ".json" if "OUT.json" in self.command else ""
        return out / f"{self.paper}-{self.name}{suffix}"


def _replayed(figure: str, workload: str, policies: str = "fcfs,lcf,vtc,vtc-predict,vtc-oracle", seeds: int = 3) -> Step:
    command = f"replay --workload {workload} --policy {policies} --seeds {seeds} --json OUT.json --html OUT.html --quiet"
    return Step("vtc", figure, workload, command)


STEPS = (
    _replayed("figure-3", "overload"),
    _replayed("figure-4", "proportional"),
    _replayed("figure-5", "on_off_less"),
    _replayed("figure-6", "on_off_overload"),
    _replayed("figure-7", "poisson_short_long"),
    _replayed("figure-8", "poisson_short_long_2"),
    _replayed("figure-9", "increase"),
    _replayed("figure-10", "dist_shift"),
    _replayed("weighted", "overload_weighted", "fcfs,vtc"),
    _replayed("rpm", "rpm_ablation", "rpm:5,rpm:20,vtc"),
    Step("vtc", "table", "the arena trace", "fairness_published.py --trace TRACE --json OUT.json"),
    Step(
        "slora",
        "table-3",
        "throughput by adapters",
        "bench lora --suite adapters --rounds 6 --json OUT.json --html OUT.html --quiet",
    ),
    Step("slora", "figure-5", "by request rate", "bench lora --suite rate --rounds 1 --json OUT.json --html OUT.html --quiet"),
    Step(
        "slora",
        "figure-4",
        "one arena or a split",
        "bench lora --suite memory --rounds 2 --json OUT.json --html OUT.html --quiet",
    ),
    Step(
        "slora",
        "figure-7",
        "merged weights, peft",
        "bench lora --suite merge --rounds 1 --json OUT.json --html OUT.html --quiet",
    ),
    Step("slora", "kernels", "per-operator times", "bench lora --suite operators --json OUT.json --html OUT.html --quiet"),
    Step("slora", "figure-9", "adapter clustering", "slora_scheduling.py clustering --json OUT.json"),
    Step("slora", "figure-10", "early abort", "slora_scheduling.py early-abort --json OUT.json"),
    Step("mcbench", "rank", "singular values", "mcbench suite activation-rank --out OUT"),
    Step("mcbench", "time", "an iteration by part, 1 Gbit/s", "tp_training.py --rounds 3 --json OUT.json"),
    Step("mcbench", "accuracy", "the paper's settings", "mcbench suite paper --jobs 2 --budget 20m --out OUT"),
)


def main() -> int:
    """Run the commands; returns the exit status."""
    parser = argparse.ArgumentParser(description="The tables and figures of the three papers.")
    parser.add_argument("--out", type=Path, default=Path("papers"), help="folder of the results (papers)")
    parser.add_argument("--only", default="", metavar="NAME", help="those whose paper or name contains it, e.g. vtc")
    parser.add_argument("--trace", type=Path, help="VTC's arena trace as CSV, for its main table")
    parser.add_argument("--budget-minutes", type=float, default=60, metavar="M", help="begin no command after that (60)")
    parser.add_argument("--list", action="store_true", help="show the commands and do nothing")
    args = parser.parse_args()
    chosen = [step for step in STEPS if args.only in f"{step.paper}-{step.name}"]
    if not chosen:
        parser.error(f"--only is {args.only!r}; allowed: a part of {', '.join(f'{step.paper}-{step.name}' for step in STEPS)}")
    if args.list:
        for step in chosen:
            print(f"{step.paper:8} {step.name:10} {step.shows}\n    {step.command}")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    end_s = time.monotonic() + 60 * args.budget_minutes
    failed = [step for number, step in enumerate(chosen, 1) if not _run(step, args, end_s, f"{number}/{len(chosen)}")]
    for step in failed:
        print(f"failed: {step.paper} {step.name}", file=sys.stderr)
    return 1 if failed else 0


def _run(step: Step, args: argparse.Namespace, end_s: float, place: str) -> bool:
    title = f"[{place}] {step.paper} {step.name}: {step.shows}"
    words = step.words(args.out, args.trace)
    if not words:
        print(f"{title}: left out, needs --trace", flush=True)
        return True
    if step.output(args.out).exists() and step.output(args.out).suffix == ".json":
        print(f"{title}: was there", flush=True)
        return True
    if time.monotonic() > end_s:
        print(f"{title}: left for another time", flush=True)
        return True
    print(title, flush=True)
    started_s = time.monotonic()
    status = subprocess.run(words, check=False).returncode
    print(f"    {time.monotonic() - started_s:.0f} s", flush=True)
    return status == 0


if __name__ == "__main__":
    sys.exit(main())
