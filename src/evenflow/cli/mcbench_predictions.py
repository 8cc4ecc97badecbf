"""``evenflow mcbench calibrate``, ``predict`` and ``advise``: what is said before anything is trained."""

from __future__ import annotations

import argparse
import re

from evenflow.base.errors import ConfigError
from evenflow.cli.mcbench_output import check_folder, say


def run_calibrate(args: argparse.Namespace) -> int:
    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.predict.calibration import calibrate

    check_folder(args.json)
    between = Link.parse(args.link_between) if args.link_between else None
    calibrate(Link.parse(args.link), progress=say, between=between).write(args.json)
    say(f"calibration written to {args.json}")
    return 0


def _range(text: str, what: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if not match or not 1 <= int(match.group(1)) <= int(match.group(2) or match.group(1)):
        raise ConfigError(f"{what} {text!r}; allowed: LOW:HIGH")
    return int(match.group(1)), int(match.group(2) or match.group(1))


def run_predict(args: argparse.Namespace) -> int:
    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.predict.machine import Machine
    from evenflow.mcbench.predict.prediction_page import prediction_page

    low, high = _range(args.hidden, "hidden")
    sizes = [h for h in (1024, 2304, 3072, 4096, 6144, 8192, 10240, 12288, 16384, 20480, 25600) if low <= h <= high] or [
        low,
        high,
    ]
    specs = ("bf16", "int8-g32", "int4-g32", "ae:100")
    machine, link = Machine.read(args.machine), Link.parse(args.link or "unlimited")
    if link.bit_per_s is not None:
        machine = machine.at_rate(link.name, link.bit_per_s)
    between = Link.parse(args.link_between or "unlimited")
    if between.bit_per_s is not None:
        machine = machine.at_rate_between(between.name, between.bit_per_s)
    prediction_page(machine, specs, sizes, _range(args.nodes, "nodes")).write(args.html)
    say(f"predictions written to {args.html}")
    return 0


def run_advise(args: argparse.Namespace) -> int:
    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.predict.advice import advise
    from evenflow.mcbench.predict.calibration import calibrate
    from evenflow.mcbench.predict.machine import Machine
    from evenflow.mcbench.suites.suite import read_results

    link = Link.parse(args.link)
    machine = Machine.read(args.machine) if args.machine else calibrate(link, progress=say)
    if link.bit_per_s is not None and machine.link != link.name:
        machine = machine.at_rate(link.name, link.bit_per_s)
    results = read_results(args.results)[0] if args.results else []
    for line in advise(machine, args.model, args.tp, args.tokens, results):
        say(line)
    return 0
