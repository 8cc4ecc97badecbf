"""``evenflow replay``: a trace or a named workload through one or several policies, on a virtual clock."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from evenflow.fairness.registry import DEFAULT_POLICY, policy_registry

if TYPE_CHECKING:
    from evenflow.bench.replay.profiles import Profile
    from evenflow.bench.replay.trace import Trace
    from evenflow.fairness import CostFunction


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "replay",
        help="compare policies on a trace or a workload, on a simulated server",
        description="Serve a trace with the real scheduler and policies on a virtual clock and measure how fair it was. "
        "TRACE is a CSV file with the columns arrival_s,client,input_len,output_len[,adapter].",
        epilog="examples:\n"
        "  evenflow replay --workload list\n"
        "  evenflow replay --workload poisson_short_long --policy fcfs,rpm:20,vtc,fair --html compare.html\n"
        "  evenflow replay --workload overload --policy vtc,vtc-oracle:0.5 --seeds 5 --json out.json\n"
        "  evenflow replay TRACE.csv --policy fcfs,hierarchy --clients clients.toml --server chunked --html mine.html\n"
        "  evenflow replay TRACE.csv --profile mine.toml --cost profiled     # mine.toml: from evenflow profile\n"
        "  evenflow replay --workload slora:n=400,rate=64 --replicas 16 --router affinity,random --policy vtc-shared \\\n"
        "      --server chunked                              # 16 engines that share their counters\n"
        "policies: "
        + ", ".join(sorted(set(policy_registry()) - {"vtc-shared"}))
        + "\n  some take an argument: rpm:20, drr:500, vtc-predict:ewma, vtc-oracle:0.5, vtc-preempt:500",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trace", nargs="?", type=Path, metavar="TRACE", help="CSV file to replay")
    parser.add_argument("--workload", metavar="NAME", help="a generated workload instead of a file; `list` shows them")
    parser.add_argument(
        "--policy", default=DEFAULT_POLICY, metavar="NAME[:ARG],...", help=f"policies to compare ({DEFAULT_POLICY})"
    )
    parser.add_argument(
        "--profile", default="a10g-llama-7b", metavar="NAME|FILE", help="step times and settings (a10g-llama-7b)"
    )
    parser.add_argument(
        "--server",
        metavar="NAME",
        help="settings of the profile: paper (as published) or chunked (ours); default: the profile's first",
    )
    parser.add_argument("--pool-tokens", type=int, metavar="N", help="another size of the KV pool")
    parser.add_argument("--factor", type=float, metavar="F", help="multiply step times by F instead of the profile's factor")
    parser.add_argument(
        "--cost",
        choices=("tokens", "profiled", "kv"),
        default="tokens",
        help="what service costs: input + 2 x output, ms, memory x time",
    )
    parser.add_argument(
        "--shed",
        default="none",
        metavar="NAME[:ARG]",
        help="give up late requests: none, paper[:GUARD_S], predict[:MARGIN] (none)",
    )
    parser.add_argument(
        "--slo-ttft", type=float, metavar="S", help="objective for the first token: of the measures, and to shed by (6)"
    )
    parser.add_argument("--replicas", metavar="N,...", help="several engines behind a router, instead of one; compares them")
    parser.add_argument(
        "--router",
        metavar="NAME[:ARG],...",
        help="with --replicas: affinity[:FRACTION], least-loaded, random, multiplexed (affinity)",
    )
    parser.add_argument("--clients", type=Path, metavar="FILE", help="clients.toml with weights and tiers")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="first seed (0)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many seeds, counted up from the first (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with tables and plots")
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="write the plots as PNG files")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from rich.console import Console

    from evenflow.base.errors import ConfigError
    from evenflow.base.logs import say
    from evenflow.base.progress import find_teller, tell_nobody
    from evenflow.bench.replay.clients_file import read_clients
    from evenflow.bench.replay.comparison import compare, write_json
    from evenflow.bench.replay.fairness_page import comparison_table, fairness_page, quality_table, write_pngs
    from evenflow.bench.replay.profiles import load_profile
    from evenflow.bench.replay.workload import WORKLOADS, make_workload
    from evenflow.fairness import check_policy
    from evenflow.report.tables import table_terminal
    from evenflow.serving.scheduler import create_shedding

    console = Console()
    if args.workload == "list":
        for name, recipe in WORKLOADS.items():
            if name != "zipf_100k":
                console.print(f"{name:28s} {recipe(0).description}", highlight=False, markup=False)
        console.print("zipf_100k                    100,000 clients by Zipf's law, 200,000 requests", highlight=False)
        return 0
    if (args.trace is None) == (args.workload is None):
        raise ConfigError("give a trace file or --workload NAME, one of the two")
    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}; allowed: 0 and more")
    if args.seeds < 1:
        raise ConfigError(f"--seeds is {args.seeds}; allowed: 1 or more")
    policies = [name.strip() for name in args.policy.split(",") if name.strip()]
    if not policies:
        raise ConfigError("--policy names no policy")
    is_fleet = args.replicas is not None or args.router is not None
    for name in dict.fromkeys(policies):
        if not (is_fleet and name == "vtc-shared"):  # it shares in memory there
            check_policy(name, is_simulation=True)
    if args.slo_ttft is not None and not 0 < args.slo_ttft < math.inf:
        raise ConfigError(f"--slo-ttft is {args.slo_ttft}; allowed: finite and above 0")
    create_shedding(args.shed, None if args.shed == "none" else args.slo_ttft)
    profile = load_profile(args.profile)
    server = profile.server(args.server, args.pool_tokens)
    step_time = profile.step_time if args.factor is None else profile.with_factor(args.factor)
    shares = read_clients(args.clients) if args.clients else None
    for path in (args.json, args.html):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"cannot write {path}: there is no folder {path.parent}")
    seeds = range(args.seed, args.seed + args.seeds)
    if is_fleet:
        from evenflow.cli.replay_fleet import replay_fleet

        replay_fleet(args, console, policies, server, step_time, shares, _cost(args.cost, profile))
        return 0

    with contextlib.nullcontext(tell_nobody) if args.quiet else find_teller(say) as tell_of:
        if args.trace is not None:
            trace = _read(args.trace, lambda rows: tell_of(f"reading, {rows:,} rows", 0, 0))
            make: Callable[[int], Trace] = lambda seed: trace  # noqa: E731
        else:
            make = lambda seed: make_workload(args.workload, seed)  # noqa: E731
            make(args.seed)  # an unknown name is told before any work
        names = list(dict.fromkeys(policies))

        def tell(policy: str, seed: int, time_s: float, end_s: float) -> None:
            done = names.index(policy) * len(seeds) + seed - args.seed
            part = min(time_s / end_s, 1.0) if end_s > 0 else 1.0
            tell_of(f"{policy}, seed {seed}, {time_s:,.0f} s", done + 0.95 * part, len(names) * len(seeds))

        comparison = compare(
            make,
            names,
            profile.name,
            server,
            step_time,
            seeds=seeds,
            shares=shares,
            cost=_cost(args.cost, profile),
            shed=args.shed,
            slo_ttft_s=args.slo_ttft,
            progress=tell,
        )
    if args.json is not None:
        write_json(comparison, args.json)
    if args.html is not None:
        fairness_page(comparison).write(args.html)
    if args.png is not None:
        write_pngs(comparison, args.png)
    if not args.quiet:
        for measure in ("paper", "token"):
            console.print(table_terminal(*comparison_table(comparison, measure, is_brief=True), title=f"measure: {measure}"))
        title = f"first token within {comparison.slo_ttft_s:g} s, shedding {comparison.shed}"
        console.print(table_terminal(*quality_table(comparison, is_brief=True), title=title))
        for path in (args.json, args.html, args.png):
            if path is not None:
                console.print(f"wrote {path}", highlight=False, markup=False)
    return 0


def _read(path: Path, progress: Callable[[int], None]) -> Trace:
    from evenflow.bench.replay.trace_files import read_trace

    return read_trace(path, progress)


def _cost(name: str, profile: Profile) -> CostFunction:
    from evenflow.fairness.books.cost import KVBytesTime, WeightedTokens

    costs: dict[str, CostFunction] = {"tokens": WeightedTokens(), "profiled": profile.cost, "kv": KVBytesTime()}
    return costs[name]
