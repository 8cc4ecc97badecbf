"""``evenflow mcbench``: list, run, suite, calibrate, predict, advise, report."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError, EvenFlowError


def add_parser(subparsers: Any) -> None:
    """Add the command and its sub-commands."""
    parser = subparsers.add_parser("mcbench", help="does compressing what model-parallel ranks send each other pay?")
    commands = parser.add_subparsers(dest="mcbench_command", metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="compressors, transports, sites, models, tasks, suites")
    listing.add_argument("--sizes", action="store_true", help="bits per element, transport and gradient of every compressor")

    run = commands.add_parser("run", help="train and measure one configuration")
    run.add_argument("--task", default="digits")
    run.add_argument("--model", default="", help="a built-in name or a local folder; default: the task's own")
    run.add_argument("--tp", type=int, default=1)
    run.add_argument("--pp", type=int, default=1)
    run.add_argument("--compress", default="none", metavar="SPEC", help="site=compressor[/transport]; ...")
    run.add_argument("--layers", default="last-half")
    run.add_argument("--modules", default=".*", metavar="REGEX")
    run.add_argument(
        "--gradient",
        default="",
        help="straight-through, same, masked or autograd, or pp.forward=masked; default: the compressor's own",
    )
    run.add_argument("--warmup-steps", type=int, default=0)
    run.add_argument("--seeds", type=int, default=5)
    run.add_argument("--steps", type=int, default=0, help="training steps; default: the task's")
    run.add_argument("--batch", type=int, default=0)
    run.add_argument("--rate", type=float, default=0.0, help="learning rate; default: the task's, 5e-5 for a model folder")
    run.add_argument("--microbatches", type=int, default=2)
    run.add_argument("--schedule", default="gpipe", help="gpipe or 1f1b")
    run.add_argument("--link", default="unlimited", help="unlimited, or a rate like 1gbit")
    run.add_argument("--hidden", type=int, default=0, help="hidden size of a built-in model")
    run.add_argument("--num-layers", type=int, default=0)
    run.add_argument("--heads", type=int, default=0)
    run.add_argument("--timed-steps", type=int, default=20)
    run.add_argument("--data-root", default="", help="folder with data files for tasks that are not built in")
    run.add_argument("--pretrain", default="", metavar="TASK", help="pre-train the model on this task (with --emulate)")
    run.add_argument("--pretrain-compress", default="none", metavar="SPEC", help="compression during pre-training only")
    run.add_argument("--emulate", action="store_true", help="virtual ranks in one process: accuracy only")
    run.add_argument("--json", metavar="FILE")

    suite = commands.add_parser("suite", help="run a named set of configurations; resumable")
    suite.add_argument("name", help="paper, modern, break-even, activation-rank or serving")
    suite.add_argument("--out", required=True, metavar="FOLDER")
    suite.add_argument("--seeds", type=int, default=5)
    suite.add_argument("--jobs", type=int, default=1, help="configurations at a time; studies take one, because they are timed")
    suite.add_argument("--budget", default="", help="like 30m or 2h: stop starting configurations after that")
    suite.add_argument(
        "--link", default="100mbit,1gbit,unlimited", metavar="LINKS", help="for break-even: one or more, by commas"
    )
    suite.add_argument("--ranks", default="2", metavar="COUNTS", help="for break-even: how many ranks, one or more, by commas")
    suite.add_argument("--task", default="digits", help="for activation-rank")

    calibrate = commands.add_parser("calibrate", help="measure what predictions need, with two local ranks")
    calibrate.add_argument("--link", default="unlimited", help="between the ranks of a node (tensor parallelism)")
    calibrate.add_argument("--link-between", default="", help="between nodes (pipeline boundaries); default: the same link")
    calibrate.add_argument("--json", required=True, metavar="FILE")

    predict = commands.add_parser("predict", help="speed-up by hidden size and nodes, from a calibration")
    predict.add_argument("--machine", required=True, metavar="FILE")
    predict.add_argument("--hidden", default="1024:25600", metavar="LOW:HIGH")
    predict.add_argument("--nodes", default="1:64", metavar="LOW:HIGH")
    predict.add_argument("--link", default="", help="assume another link than the calibrated one, like 100gbit")
    predict.add_argument("--link-between", default="", help="assume this link between nodes, like 100mbit")
    predict.add_argument("--html", required=True, metavar="FILE")

    advise = commands.add_parser("advise", help="which compressor pays for this model on this link")
    advise.add_argument("--model", required=True, help="a built-in name or a local folder")
    advise.add_argument("--tp", type=int, required=True)
    advise.add_argument("--link", default="unlimited")
    advise.add_argument("--machine", metavar="FILE", help="a calibration; default: calibrate now")
    advise.add_argument("--tokens", type=int, default=2048, help="tokens per micro-batch")
    advise.add_argument("--results", metavar="FOLDER", help="results to take accuracy evidence from")

    report = commands.add_parser("report", help="one HTML page of a folder of results")
    report.add_argument("folder")
    report.add_argument("--html", required=True, metavar="FILE")


def run(args: argparse.Namespace) -> int:
    """Run a sub-command; return the exit status."""
    actions = {
        "list": _list,
        "run": _run,
        "suite": _suite,
        "calibrate": _calibrate,
        "predict": _predict,
        "advise": _advise,
        "report": _report,
    }
    return actions[args.mcbench_command](args)


def _check_folder(path: str | None) -> None:
    """Raise ConfigError, before any work is done, if a file could not be written there."""
    if path and not (os.path.isdir(Path(path).parent) and os.access(Path(path).parent, os.W_OK)):
        raise ConfigError(f"cannot write {path}: there is no folder {Path(path).parent} that can be written to")


def _say(text: str) -> None:
    print(text, flush=True)


def _list(args: argparse.Namespace) -> int:
    from evenflow.comm.catalogue import PAPER_SETTINGS, SUMMARIES, TRANSPORTS
    from evenflow.mcbench.names import FILE_TASKS, MODELS, STUDIES, SUITES, TASKS, WIRE_SITES

    if args.sizes:
        _list_sizes((*SUMMARIES, *(f"paper:{setting}" for setting in PAPER_SETTINGS)))
        return 0
    _say("compressors, each with an argument that works (--sizes: bits per element, transport and gradient of each)")
    for spec, summary in SUMMARIES.items():
        _say(f"  {spec:<22}{summary}")
    _say(f"  the paper's settings: {', '.join(f'paper:{setting}' for setting in PAPER_SETTINGS)}")
    _say("  ef(SPEC) around any that keeps no memory of its own: error feedback")
    _say(f"transports: {', '.join(TRANSPORTS)}")
    _say(f"sites: {', '.join(WIRE_SITES)}")
    _say("  sp: real ranks only (no --emulate), without pipeline stages and without learned compressors")
    _say(f"models: {', '.join(MODELS)}, or a local folder")
    _say(f"tasks: {', '.join(TASKS)}; with --data-root: {', '.join(FILE_TASKS)}")
    _say(f"suites: {', '.join((*SUITES, *STUDIES))}")
    return 0


def _list_sizes(specs: Sequence[str]) -> None:
    import torch

    from evenflow.comm import get_compressor, get_transport

    _say(f"{'compressor':<22}{'algebra':<12}{'transport':<12}{'gradient':<18}bits per element (fp32 [512, 1024])")
    for spec in specs:
        compressor = get_compressor(spec)
        bits = 8 * compressor.wire_plan((512, 1024), torch.float32).payload_bytes / (512 * 1024)
        transport = get_transport(None, compressor).name
        _say(f"{spec:<22}{compressor.algebra.value:<12}{transport:<12}{compressor.gradient.value:<18}{bits:.2f}")


def _run(args: argparse.Namespace) -> int:
    from evenflow.mcbench.runs.run import run as run_config
    from evenflow.mcbench.runs.run_config import RunConfig
    from evenflow.report.page import write_whole

    names = RunConfig.__dataclass_fields__
    config = RunConfig(**{name: value for name, value in vars(args).items() if name in names})
    _check_folder(args.json)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _run_under_torchrun(config, args.json)
    result = run_config(config, _say)
    if args.json:
        write_whole(args.json, (json.dumps(result, indent=1) + "\n").encode())
    _say(_summary(result))
    return 1 if "incomplete" in result else 0


def _run_under_torchrun(config: Any, path: str | None) -> int:
    import torch.distributed as dist

    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.runs.build import task_of
    from evenflow.mcbench.runs.rank_worker import run_rank
    from evenflow.mcbench.runs.run import describe, summarise
    from evenflow.report.page import write_whole

    dist.init_process_group("gloo")
    records: list[dict[str, Any]] = []
    is_reporter = dist.get_rank() == (config.pp - 1) * config.tp

    def emit(kind: str, value: Any) -> None:
        records.append({"kind": kind, "value": value})
        if is_reporter and (line := describe(kind, value)):
            _say(line)

    failure: EvenFlowError | None = None
    try:
        run_rank(config, emit, Link.parse(config.link))
    except EvenFlowError as error:
        if not any(record["kind"] == "seed" for record in records):
            raise
        failure = error
    if is_reporter:
        result = summarise(config, task_of(config), records)
        if failure is not None:
            result["incomplete"] = str(failure)
        kind = "unlimited" if config.link == "unlimited" else "emulated: token bucket in the transport (torchrun)"
        result["link"] = {"nominal": config.link, "kind": kind}
        if path:
            write_whole(path, (json.dumps(result, indent=1) + "\n").encode())
        _say(_summary(result))
    if failure is not None:
        return 1  # a broken group cannot be left in good order
    dist.destroy_process_group()
    return 0


def _summary(result: dict[str, Any]) -> str:
    name = result["metric"]
    half = result[f"{name}_interval"]
    lines = [
        f"{name} {result[name]:.4f}"
        + (f" ± {half:.4f} (95 %, {len(result['seeds'])} seeds)" if half is not None else " (one seed)")
    ]
    lines.append(f"with compression off at evaluation: {result['dense_at_eval'][name]:.4f}")
    lines += [f"{site}: {entry['counted']:.0f} bytes per step and rank" for site, entry in result["bytes_per_step"].items()]
    if result["ms_per_iteration"]:
        link, total = result["link"], result["ms_per_iteration"]["total"]
        lines.append(f"{total:.1f} ms per iteration over {link['nominal']} ({link['kind']})")
    if "incomplete" in result:
        lines.append(f"incomplete: {result['incomplete']}")
    return "\n".join(lines)


def _suite(args: argparse.Namespace) -> int:
    from evenflow.mcbench.names import STUDIES
    from evenflow.mcbench.runs.pretrain import Backbones
    from evenflow.mcbench.runs.run import run as run_config
    from evenflow.mcbench.suites.suite import run_suite, suite

    folder = Path(args.out)
    if args.name in STUDIES:
        if args.jobs != 1:
            raise ConfigError(f"--jobs {args.jobs}; allowed: 1 (studies beside each other would measure each other)")
        _studies(args, folder)
        return 0
    configs = suite(args.name, args.seeds)
    run_one = partial(run_config, progress=lambda text: _say(f"    {text}"), backbones=Backbones(folder / "pretrained"))
    outcome = run_suite(configs, folder, _budget_s(args.budget), _say, run_one, jobs=args.jobs)
    _say(f"{outcome.done} run, {outcome.skipped} had results, {outcome.failed} failed, {outcome.left} left")
    return 1 if outcome.failed else 0


def _studies(args: argparse.Namespace, folder: Path) -> None:
    from evenflow.mcbench.suites.studies import activation_rank, serving_errors
    from evenflow.report.page import write_whole

    folder.mkdir(parents=True, exist_ok=True)
    if args.name == "break-even":
        _break_even(args, folder)
        return
    which = args.task if args.name == "activation-rank" else "random-llama"
    path = folder / f"study-{args.name}-{which}.json"
    if path.exists():
        _say(f"{path} is there already")
        return
    result = activation_rank(args.task) if args.name == "activation-rank" else serving_errors()
    write_whole(path, (json.dumps(result, indent=1) + "\n").encode())
    _say(f"written to {path}")


def _break_even(args: argparse.Namespace, folder: Path) -> None:
    """Predict, write the predictions, then measure: link by link."""
    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.predict.break_even import BREAK_EVEN_SPECS, break_even, predict_break_even
    from evenflow.mcbench.predict.calibration import calibrate
    from evenflow.report.page import write_whole

    counts = [text.strip() for text in args.ranks.split(",")]
    if not all(text.isdigit() and int(text) >= 2 for text in counts):
        raise ConfigError(f"ranks {args.ranks!r}; allowed: counts of 2 or more, by commas")
    for link in [Link.parse(text) for text in args.link.split(",")]:
        paths = {int(text): folder / f"study-break-even-{link.name}-{int(text)}-ranks.json" for text in counts}
        missing = {ranks: path for ranks, path in paths.items() if not path.exists()}
        for path in paths.values():
            if path not in missing.values():
                _say(f"{path} is there already")
        if not missing:
            continue
        _say(f"{link.name}: predicting before it is measured")
        machine = calibrate(link, [spec for spec in BREAK_EVEN_SPECS if spec != "none"], _say)
        for ranks, path in missing.items():
            predicted = path.with_name(path.name.replace("study-", "prediction-", 1))
            write_whole(predicted, (json.dumps(predict_break_even(machine, ranks), indent=1) + "\n").encode())
            _say(f"predictions written to {predicted}")
        for ranks, path in missing.items():
            write_whole(path, (json.dumps(break_even(link, ranks, _say), indent=1) + "\n").encode())
            _say(f"written to {path}")


def _budget_s(text: str) -> float | None:
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match:
        raise ConfigError(f"budget {text!r}; allowed: a number and s, m or h, like 30m")
    return float(match.group(1)) * {"s": 1, "m": 60, "h": 3600}[match.group(2)]


def _calibrate(args: argparse.Namespace) -> int:
    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.predict.calibration import calibrate

    _check_folder(args.json)
    between = Link.parse(args.link_between) if args.link_between else None
    calibrate(Link.parse(args.link), progress=_say, between=between).write(args.json)
    _say(f"calibration written to {args.json}")
    return 0


def _range(text: str, what: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if not match or not 1 <= int(match.group(1)) <= int(match.group(2) or match.group(1)):
        raise ConfigError(f"{what} {text!r}; allowed: LOW:HIGH")
    return int(match.group(1)), int(match.group(2) or match.group(1))


def _predict(args: argparse.Namespace) -> int:
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
    _say(f"predictions written to {args.html}")
    return 0


def _advise(args: argparse.Namespace) -> int:
    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.predict.advice import advise
    from evenflow.mcbench.predict.calibration import calibrate
    from evenflow.mcbench.predict.machine import Machine
    from evenflow.mcbench.suites.suite import read_results

    link = Link.parse(args.link)
    machine = Machine.read(args.machine) if args.machine else calibrate(link, progress=_say)
    if link.bit_per_s is not None and machine.link != link.name:
        machine = machine.at_rate(link.name, link.bit_per_s)
    results = read_results(args.results)[0] if args.results else []
    for line in advise(machine, args.model, args.tp, args.tokens, results):
        _say(line)
    return 0


def _report(args: argparse.Namespace) -> int:
    from evenflow.mcbench.suites.report_page import results_page
    from evenflow.mcbench.suites.suite import read_predictions, read_results, read_studies

    studies = read_studies(args.folder)
    results, failures = read_results(args.folder, is_needed=not studies)
    results_page(results, failures, studies, read_predictions(args.folder)).write(args.html)
    _say(f"{len(results)} results and {len(studies)} studies in {args.html}")
    return 0
