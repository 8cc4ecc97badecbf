"""``evenflow usage``: what was used, from the accounts that a server has kept."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from evenflow.accounts.open_store import open_store
from evenflow.accounts.report import (
    DIMENSIONS,
    as_csv,
    read_dimensions,
    read_moment,
    read_prices,
    start_of_month,
    summary,
)
from evenflow.accounts.store import StoreAway
from evenflow.base.errors import ConfigError
from evenflow.base.logs import say


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "usage",
        help="who used what: tokens, service and money by client, adapter, hour, day or month",
        description="Reads the accounts that `evenflow serve --accounts` keeps, also while the server runs.",
    )
    parser.add_argument("--accounts", required=True, metavar="WHERE", help="the file, or postgresql://...")
    parser.add_argument("--since", metavar="DATE", help="like 2026-11-01, UTC; default: the start of this month")
    parser.add_argument("--until", metavar="DATE", help="up to and without; default: now")
    parser.add_argument("--by", default="client,adapter", metavar="LIST", help=f"by commas: {', '.join(DIMENSIONS)}")
    parser.add_argument("--client", metavar="NAME", help="this one alone")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="TOML of prices for a million tokens; adds the column cost")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true")
    form.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table. Raises ConfigError."""
    now_s = time.time()
    since_s = read_moment(args.since, "--since") if args.since else start_of_month(now_s)
    until_s = read_moment(args.until, "--until") if args.until else int(now_s) + 3600
    prices = read_prices(args.prices) if args.prices else None
    try:
        store = open_store(args.accounts, must_exist=True)
        rows = summary(store.read(since_s, until_s, args.client), read_dimensions(args.by), prices)
        store.close()
    except StoreAway as error:
        raise ConfigError(f"the accounts cannot be read: {error}") from None
    if args.csv:
        print(as_csv(rows), end="")
    elif args.json:
        print(json.dumps(rows, indent=1))
    elif not rows:
        say("nothing was used in this time")
    else:
        print(_table(rows))
    return 0


def _table(rows: list[dict[str, object]]) -> str:
    names = [name for name in rows[0] if not name.startswith("mean_")]
    cells = [[_shown(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(names)]
    is_number = [not isinstance(rows[0][name], str) or name == "cost" for name in names]

    def line(values: list[str]) -> str:
        return "  ".join(v.rjust(w) if n else v.ljust(w) for v, w, n in zip(values, widths, is_number, strict=True)).rstrip()

    return "\n".join([line(names), *(line(row) for row in cells)])


def _shown(value: object) -> str:
    text = f"{value:,.0f}" if isinstance(value, int | float) else str(value)
    return "".join(character if character.isprintable() else "?" for character in text) or "(base)"
