"""``evenflow bench``: measure this machine, or any server: lora, serve, compare."""

from __future__ import annotations

import argparse
import importlib

SUB_COMMANDS = ("lora", "serve", "compare")
"""Modules ``evenflow.cli.bench_NAME``, each with ``add_parser(subparsers)`` and ``run(args) -> exit status``."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("bench", help="measure: many adapters, any server under load, this engine beside others")
    what = parser.add_subparsers(dest="bench_command", metavar="WHAT", required=True)
    for name in SUB_COMMANDS:
        importlib.import_module(f"evenflow.cli.bench_{name}").add_parser(what)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    status: int = importlib.import_module(f"evenflow.cli.bench_{args.bench_command}").run(args)
    return status
