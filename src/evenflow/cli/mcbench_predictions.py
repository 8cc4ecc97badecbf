"""``evenflow mcbench calibrate``, ``predict`` and ``advise``: what is said before anything is trained."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from evenflow.base.errors import ConfigError
from evenflow.cli.mcbench_output import check_folder, say

if TYPE_CHECKING:
    from evenflow.mcbench.predict.machine import Machine

_HIDDEN = (1024, 2304, 3072, 4096, 6144, 8192, 10240, 12288, 16384, 20480, 25600)


def run_calibrate(args: argparse.Namespace) -> int:
    """Measure this machine and link; return the exit status."""
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


def _assumed(machine: Machine, args: argparse.Namespace) -> Machine:
    """Return the calibrated machine with what the flags assume instead: a GPU, its arithmetic, another link."""
    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.predict.advice import TORCH_DTYPES
    from evenflow.mcbench.predict.gpus import on_gpu

    if args.gpu:
        machine = on_gpu(machine, args.gpu, TORCH_DTYPES[args.dtype].itemsize)
    if args.tflops:
        machine = machine.at_arithmetic(args.tflops)
    link = Link.parse(args.link or "unlimited")
    if link.bit_per_s is not None and machine.link != link.name:
        machine = machine.at_rate(link.name, link.bit_per_s)
    return machine


def run_predict(args: argparse.Namespace) -> int:
    """Write the page of predictions; return the exit status."""
    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.predict.advice import TORCH_DTYPES
    from evenflow.mcbench.predict.cost_model import Shape
    from evenflow.mcbench.predict.machine import Machine
    from evenflow.mcbench.predict.prediction_page import prediction_page

    low, high = _range(args.hidden, "hidden")
    sizes = [hidden for hidden in _HIDDEN if low <= hidden <= high] or [low, high]
    machine = _assumed(Machine.read(args.machine), args)
    between = Link.parse(args.link_between or "unlimited")
    if between.bit_per_s is not None:
        machine = machine.at_rate_between(between.name, between.bit_per_s)
    dtype = TORCH_DTYPES[args.dtype]
    base = Shape(hidden=low, layers=1, sequence=args.seq, micro_batch=args.batch, tp=args.tp, dtype=dtype)
    specs = ("bf16", "int8-g32", "int4-g32", "ae:100")
    prediction_page(machine, specs, sizes, _range(args.nodes, "nodes"), base).write(args.html)
    say(f"predictions written to {args.html}")
    return 0


def run_advise(args: argparse.Namespace) -> int:
    """Print which compressor pays; return the exit status."""
    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.predict.advice import Question, advise
    from evenflow.mcbench.predict.calibration import calibrate
    from evenflow.mcbench.predict.gpus import gpu_of
    from evenflow.mcbench.predict.machine import Machine
    from evenflow.mcbench.predict.published import published_evaluation
    from evenflow.mcbench.runs.benchmark_models import hidden_of
    from evenflow.mcbench.runs.language_eval import LanguageEval, evaluate_language
    from evenflow.mcbench.suites.suite import read_evaluations, read_results

    question = Question(hidden=hidden_of(args.model), tp=args.tp, sequence=args.seq, batch=args.batch, dtype=args.dtype)
    if args.gpu:
        gpu_of(args.gpu)  # an unknown name is told before any work
    machine = Machine.read(args.machine) if args.machine else calibrate(Link.parse(args.link), progress=say)
    machine = _assumed(machine, args)
    results = read_results(args.results, is_needed=False)[0] if args.results else []
    evaluations = read_evaluations(args.results) if args.results else []
    if args.results and not results and not evaluations:
        raise ConfigError(f"{args.results} holds no results of `evenflow mcbench run`, `suite` or `eval`")
    if args.text:
        specs = tuple(spec for spec in machine.encode if not spec.startswith(("ae", "subspace-learned")))
        config = LanguageEval(model=args.model, text=args.text, tp=args.tp, compress=specs, dtype=args.dtype)
        evaluations.append(evaluate_language(config, say))
    for line in advise(machine, question, results, [*evaluations, published_evaluation()]):
        say(line)
    return 0
