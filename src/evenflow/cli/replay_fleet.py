"""``evenflow replay --replicas``: a trace through several simulated engines behind a router."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evenflow.base.errors import ConfigError
from evenflow.base.logs import say
from evenflow.base.progress import find_teller, tell_nobody

if TYPE_CHECKING:
    from rich.console import Console

    from evenflow.bench.replay.clients_file import ClientShares
    from evenflow.bench.replay.profiles import ServerSettings
    from evenflow.fairness import CostFunction
    from evenflow.serving.engine.simulated import StepTime

MOST_REPLICAS = 1024


def replay_fleet(
    args: argparse.Namespace,
    console: Console,
    policies: Sequence[str],
    server: ServerSettings,
    step_time: StepTime,
    shares: ClientShares | None,
    cost: CostFunction,
) -> None:
    """Compare, print and write. Raises ConfigError for options that do not go together."""
    from evenflow.bench.replay.fleet_comparison import compare_routers, fleet_table, write_fleet_json
    from evenflow.bench.replay.trace_files import read_trace
    from evenflow.bench.replay.workload import make_workload
    from evenflow.fairness.books.weights import tiered
    from evenflow.report.tables import table_terminal
    from evenflow.routing.registry import DEFAULT_ROUTER, create_router

    for option in ("html", "png"):
        if getattr(args, option) is not None:
            raise ConfigError(f"--{option} shows one engine; with --replicas there are the table and --json")
    if args.shed != "none" or args.seeds != 1:
        raise ConfigError("--replicas goes without --shed and --seeds")
    counts = [_count(text) for text in (args.replicas or "1").split(",")]
    routers = list(dict.fromkeys(name.strip() for name in (args.router or DEFAULT_ROUTER).split(",")))
    for name in routers:
        create_router(name)
    trace = read_trace(args.trace, lambda rows: None) if args.trace is not None else make_workload(args.workload, args.seed)
    weights = {}
    if shares is not None:
        weight_of = tiered(shares.weight_by_client, shares.tier_by_client, shares.weight_by_tier)
        weights = {client: weight_of(client) for client in {*shares.weight_by_client, *shares.tier_by_client}}
    with contextlib.nullcontext(tell_nobody) if args.quiet else find_teller(say) as tell:
        results = compare_routers(
            trace,
            routers,
            list(dict.fromkeys(policies)),
            counts,
            server,
            step_time,
            weight_by_client=weights,
            cost=cost,
            seed=args.seed,
            tell=tell,
        )
    if args.json is not None:
        write_fleet_json(args.json, results, {"workload": trace.name, "profile": args.profile, "server": server.name})
    if not args.quiet:
        header, rows = fleet_table(results)
        console.print(table_terminal(header, rows, title=trace.description or trace.name))
        if args.json is not None:
            console.print(f"wrote {args.json}", highlight=False, markup=False)


def _count(text: str) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text) <= MOST_REPLICAS:
        raise ConfigError(f"--replicas is {text!r}; allowed: 1 to {MOST_REPLICAS}, several with commas between")
    return int(text)
