"""``evenflow``: one command per file of this package; only the chosen one is imported for real work."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Sequence

from evenflow.base.errors import EvenFlowError
from evenflow.base.logs import configure_logging, flush_logs, say
from evenflow.base.version import __version__
from evenflow.cli.flexible_parser import FlexibleParser

_LINGER_S = 3.0

COMMANDS = ("demo", "serve", "ray", "generate", "quantize", "eval", "keys", "usage", "replay", "profile", "bench", "mcbench")
"""Modules of this package, each with ``add_parser(subparsers)`` and ``run(args) -> exit status``."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = FlexibleParser(
        prog="evenflow",
        description="One base model, thousands of LoRA adapters, many clients, served fairly.",
    )
    parser.add_argument("--version", action="version", version=f"evenflow {__version__}")
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), help="default: info to serve, else warning"
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"evenflow.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 good, 1 failed, 2 wrong use, 130 interrupted)."""
    args = build_parser().parse_args(argv)
    args.log_level = args.log_level or ("info" if args.command in ("serve", "ray") else "warning")
    configure_logging(args.log_level)
    try:
        return importlib.import_module(f"evenflow.cli.{args.command}").run(args)
    except EvenFlowError as error:
        say(f"evenflow {args.command}: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def script() -> None:
    """Run the command line as a process of its own. It ends within seconds of the command, whatever a thread waits for."""
    try:
        status = main()
    except SystemExit as error:  # argparse's
        status = error.code if isinstance(error.code, int) else 2
    except BaseException:
        say(traceback.format_exc())
        status = 1
    # A thread may wait for a disk that does not answer, and standard error may be a pipe that nobody reads.
    last = threading.Timer(_LINGER_S, os._exit, (status,))
    last.daemon = True
    last.start()
    if not flush_logs():
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    script()
