"""``evenflow mcbench``: list, run, eval, suite, calibrate, predict, advise, report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from evenflow.cli.mcbench_eval import run_eval
from evenflow.cli.mcbench_output import say
from evenflow.cli.mcbench_parser import add_parser
from evenflow.cli.mcbench_predictions import run_advise, run_calibrate, run_predict
from evenflow.cli.mcbench_runs import run_named_suite, run_one


def run(args: argparse.Namespace) -> int:
    """Run a sub-command; return the exit status."""
    actions = {
        "list": _list,
        "run": run_one,
        "suite": run_named_suite,
        "calibrate": run_calibrate,
        "predict": run_predict,
        "advise": run_advise,
        "eval": run_eval,
        "report": _report,
    }
    # Compressors of one's own (MODULE:CLASS) are looked for where the command is given, as ranks and workers do.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return actions[args.mcbench_command](args)


def _list(args: argparse.Namespace) -> int:
    from evenflow.comm.catalogue import ENTRY_POINTS, PAPER_SETTINGS, SUMMARIES, TRANSPORTS, installed_compressors
    from evenflow.mcbench import names

    if args.sizes:
        _list_sizes((*SUMMARIES, *(f"paper:{setting}" for setting in PAPER_SETTINGS)))
        return 0
    say("compressors, each with an argument that works (--sizes: bits per element, transport and gradient of each)")
    for spec, summary in SUMMARIES.items():
        say(f"  {spec:<22}{summary}")
    say(f"  the paper's settings: {', '.join(f'paper:{setting}' for setting in PAPER_SETTINGS)}")
    say("  ef(SPEC) around any that keeps no memory of its own: error feedback")
    for name, target in installed_compressors().items():
        say(f"  {name:<22}installed: {target}")
    say(f"  MODULE:CLASS[:ARGUMENT] of your own, or an entry point of the group {ENTRY_POINTS}")
    say(f"transports: {', '.join(TRANSPORTS)}")
    say(f"sites: {', '.join(names.WIRE_SITES)}; tp, sp, pp: both directions")
    say("  sp: real ranks only (no --emulate), without pipeline stages and without learned compressors")
    say(f"gradient rules: {', '.join(names.GRADIENT_RULES)}")
    say(f"layers: {', '.join(names.LAYER_NAMES)}, or a range like 13-24 (default: {names.DEFAULT_LAYERS})")
    say(f"dtypes: {', '.join(names.DTYPES)} (fp16: eval only)")
    say(f"schedules of pipelines: {', '.join(names.SCHEDULES)}")
    say("links: unlimited, or a rate like 100mbit, 1gbit")
    say(f"models: {', '.join(names.MODELS)}, or a local folder")
    say(f"tasks: {', '.join(names.TASKS)}; with --data-root: {', '.join(names.FILE_TASKS)}")
    say(f"suites: {', '.join((*names.SUITES, *names.STUDIES))}")
    return 0


def _list_sizes(specs: Sequence[str]) -> None:
    import torch

    from evenflow.comm import get_compressor, get_transport

    say(f"{'compressor':<22}{'algebra':<12}{'transport':<12}{'gradient':<18}bits per element (fp32 [512, 1024])")
    for spec in specs:
        compressor = get_compressor(spec)
        bits = 8 * compressor.wire_plan((512, 1024), torch.float32).payload_bytes / (512 * 1024)
        transport = get_transport(None, compressor, world_size=4).name
        say(f"{spec:<22}{compressor.algebra.value:<12}{transport:<12}{compressor.gradient.value:<18}{bits:.2f}")


def _report(args: argparse.Namespace) -> int:
    from evenflow.mcbench.suites.report_page import results_page
    from evenflow.mcbench.suites.suite import read_evaluations, read_predictions, read_results, read_studies

    studies, evaluations = read_studies(args.folder), read_evaluations(args.folder)
    results, failures = read_results(args.folder, is_needed=not studies and not evaluations)
    results_page(results, failures, studies, read_predictions(args.folder), evaluations).write(args.html)
    counts = f"{len(results)} results, {len(studies)} studies and {len(evaluations)} evaluations"
    say(f"{counts} in {args.html}")
    return 0


__all__ = ["add_parser", "run"]
