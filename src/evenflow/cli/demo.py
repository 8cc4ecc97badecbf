"""``evenflow demo``: the embedded model, a thousand adapters and four clients, under fcfs and under fair."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "demo",
        help="one model, 1,006 adapters, one greedy and three quiet clients: fcfs against fair",
        description="Serve the embedded model with its trained adapters and 1,000 more to one greedy client and three quiet "
        "ones, first under fcfs, then under fair. Prints a table and sample answers and writes a report. Ends by itself.",
    )
    parser.add_argument("--report", type=Path, default=Path("demo-report.html"), metavar="FILE", help="(demo-report.html)")
    parser.add_argument(
        "--num-adapters", type=int, default=1000, metavar="N", help="random adapters beside the trained ones (1000)"
    )
    parser.add_argument("--seconds", type=float, default=25.0, metavar="S", help="length of each round (25)")
    parser.add_argument("--greedy", type=int, default=64, metavar="N", help="requests the greedy client keeps in flight (64)")
    parser.add_argument(
        "--stage",
        type=Path,
        metavar="FILE",
        help="another model and its adapters, as make demo-real prepares them (the embedded)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit status."""
    from rich.console import Console

    from evenflow.demo.run import DemoOptions, run_demo
    from evenflow.demo.stage import embedded_stage, read_stage

    options = DemoOptions(
        report=args.report,
        num_adapters=args.num_adapters,
        seconds=args.seconds,
        greedy=args.greedy,
        stage=embedded_stage() if args.stage is None else read_stage(args.stage),
    )
    return run_demo(options, Console())
