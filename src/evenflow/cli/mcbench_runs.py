"""``evenflow mcbench run`` and ``suite``: training runs and studies."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError, EvenFlowError
from evenflow.base.memory_size import format_size, parse_size
from evenflow.cli.mcbench_output import check_folder, say, say_indented, write_json


def run_one(args: argparse.Namespace) -> int:
    from evenflow.mcbench.runs.run import run as run_config
    from evenflow.mcbench.runs.run_config import RunConfig

    names = RunConfig.__dataclass_fields__
    values = {name: value for name, value in vars(args).items() if name in names and name != "dense_below"}
    config = replace(RunConfig(**values), dense_below=_dense_below(RunConfig(**values), args.dense_below))
    check_folder(args.json)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _run_under_torchrun(config, args.json)
    result = run_config(config, say)
    if args.json:
        write_json(args.json, result)
    say(_summary(result))
    return 1 if "incomplete" in result or not result["seeds"] else 0


def _dense_below(config: Any, given: str) -> int:
    """Return a size in bytes: the one given, or the largest from which on all of the run's rules pay by a calibration."""
    from evenflow.mcbench.predict.cost_model import pays_from
    from evenflow.mcbench.predict.machine import Machine
    from evenflow.mcbench.runs.precision import precision

    if given == "0":
        return 0
    if not given.endswith(".json"):
        return parse_size(given)
    machine, dtype = Machine.read(given), precision(config.dtype).weights
    rules = [f"{rule.spec}/{rule.transport}" if rule.transport else rule.spec for rule in config.rules().by_site.values()]
    ranks, width = max(config.tp, config.dp, 2), config.hidden or 512
    sizes = [pays_from(machine, rule, ranks, width, dtype) for rule in set(rules) if rule != "none"]
    size = max(sizes, default=0)
    say(f"tensors below {format_size(size)} are sent as they are (by {given})")
    return size


def _run_under_torchrun(config: Any, path: str | None) -> int:
    import torch.distributed as dist

    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.runs.build import task_of
    from evenflow.mcbench.runs.end_process import end_process
    from evenflow.mcbench.runs.rank_worker import run_rank
    from evenflow.mcbench.runs.run import describe, summarise

    dist.init_process_group("gloo")
    records: list[dict[str, Any]] = []
    is_reporter = dist.get_rank() == (config.pp - 1) * config.tp

    def emit(kind: str, value: Any) -> None:
        records.append({"kind": kind, "value": value})
        if is_reporter and (line := describe(kind, value)):
            say(line)

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
            write_json(path, result)
        say(_summary(result))
    if failure is None:
        with contextlib.suppress(RuntimeError):  # a peer that died tells so by its own exit status
            dist.barrier()
    end_process(1 if failure is not None else 0)


def _summary(result: dict[str, Any]) -> str:
    name = result["metric"]
    half = result[f"{name}_interval"]
    lines = [f"seed {seed['seed']} {seed['reason']}" for seed in result["diverged"]]
    if result["seeds"]:
        spread = f" ± {half:.4f} (95 %, {len(result['seeds'])} seeds)" if half is not None else " (one seed)"
        lines.append(f"{name} {result[name]:.4f}{spread}")
        lines.append(f"with compression off at evaluation: {result['dense_at_eval'][name]:.4f}")
    else:
        lines.append(f"no {name}: all seeds diverged")
    lines += [f"{site}: {entry['counted']:.0f} bytes per step and rank" for site, entry in result["bytes_per_step"].items()]
    if result["ms_per_iteration"]:
        link, total = result["link"], result["ms_per_iteration"]["total"]
        lines.append(f"{total:.1f} ms per iteration over {link['nominal']} ({link['kind']})")
    if "incomplete" in result:
        lines.append(f"incomplete: {result['incomplete']}")
    return "\n".join(lines)


def run_named_suite(args: argparse.Namespace) -> int:
    from evenflow.mcbench.names import STUDIES
    from evenflow.mcbench.suites.suite import SuiteRun, run_suite, suite

    folder = Path(args.out)
    if args.name in STUDIES:
        if args.jobs != 1:
            raise ConfigError(f"--jobs {args.jobs}; allowed: 1 (studies beside each other would measure each other)")
        _studies(args, folder)
        return 0
    configs = suite(args.name, args.seeds, _base_of_suite(args))
    run_one = SuiteRun(folder / "pretrained", say_indented)
    outcome = run_suite(configs, folder, _budget_s(args.budget), say, run_one, jobs=args.jobs)
    say(f"{outcome.done} run, {outcome.skipped} had results, {outcome.failed} failed, {outcome.left} left")
    return 1 if outcome.failed else 0


def _base_of_suite(args: argparse.Namespace) -> Any:
    """Return the training run that a suite is to be made of, or None for its own."""
    from evenflow.mcbench.runs.run_config import RunConfig

    if not (args.task or args.model or args.data_root or args.link or args.steps):
        return None
    return RunConfig(
        task=args.task or "digits",
        model=args.model,
        data_root=args.data_root,
        steps=args.steps,
        layers="last-half",
        emulate=not args.link,
        link=args.link or "unlimited",
        timed_steps=args.timed_steps,
    )


def _studies(args: argparse.Namespace, folder: Path) -> None:
    from evenflow.mcbench.suites.studies import activation_rank, serving_errors

    folder.mkdir(parents=True, exist_ok=True)
    if args.name == "break-even":
        _break_even(args, folder)
        return
    which = (args.task or "digits") if args.name == "activation-rank" else "random-llama"
    path = folder / f"study-{args.name}-{which}.json"
    if path.exists():
        say(f"{path} is there already")
        return
    result = activation_rank(args.task or "digits") if args.name == "activation-rank" else serving_errors()
    write_json(path, result)
    say(f"written to {path}")


def _break_even(args: argparse.Namespace, folder: Path) -> None:
    """Predict, write the predictions, then measure: link by link."""
    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.predict.break_even import BREAK_EVEN_SPECS, break_even, predict_break_even
    from evenflow.mcbench.predict.calibration import calibrate

    counts = [text.strip() for text in args.ranks.split(",")]
    if not all(text.isdigit() and int(text) >= 2 for text in counts):
        raise ConfigError(f"ranks {args.ranks!r}; allowed: counts of 2 or more, by commas")
    for link in [Link.parse(text) for text in (args.link or "100mbit,1gbit,unlimited").split(",")]:
        paths = {int(text): folder / f"study-break-even-{link.name}-{int(text)}-ranks.json" for text in counts}
        missing = {ranks: path for ranks, path in paths.items() if not path.exists()}
        for path in paths.values():
            if path not in missing.values():
                say(f"{path} is there already")
        if not missing:
            continue
        say(f"{link.name}: predicting before it is measured")
        machine = calibrate(link, [spec for spec in BREAK_EVEN_SPECS if spec != "none"], say)
        for ranks, path in missing.items():
            predicted = path.with_name(path.name.replace("study-", "prediction-", 1))
            write_json(predicted, predict_break_even(machine, ranks))
            say(f"predictions written to {predicted}")
        for ranks, path in missing.items():
            write_json(path, break_even(link, ranks, say))
            say(f"written to {path}")


def _budget_s(text: str) -> float | None:
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match:
        raise ConfigError(f"budget {text!r}; allowed: a number and s, m or h, like 30m")
    return float(match.group(1)) * {"s": 1, "m": 60, "h": 3600}[match.group(2)]
