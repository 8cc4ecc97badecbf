"""``evenflow bench lora``: S-LoRA's experiments and ablations on this machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from pathlib import Path

DEFAULT_SUITE = "adapters"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    lora = subparsers.add_parser(
        "lora",
        help="S-LoRA's experiments and ablations",
        description="Serve random adapters on a random model with the engine as it is shipped and with its ablations, round by "
        "round. The JSON document grows with every sample; the same command continues it. Needs no web framework.",
        epilog="example: evenflow bench lora --suite variants,operators --json lora.json --html lora.html",
    )
    lora.add_argument("--suite", default=DEFAULT_SUITE, metavar="NAME,...", help=f"experiments, see --list ({DEFAULT_SUITE})")
    lora.add_argument("--variants", default="", metavar="NAME,...", help="what to compare; default: the suite's own")
    lora.add_argument("--json", type=Path, metavar="FILE", help="the document; continued if it is there (lora.json)")
    lora.add_argument("--html", type=Path, metavar="FILE", help="write one page with figures and tables")
    lora.add_argument("--list", action="store_true", help="show suites, variants and settings, and do nothing")
    lora.add_argument("--budget", default="", metavar="TIME", help="begin no sample after this long, e.g. 4m; continue later")
    lora.add_argument("--rounds", type=int, metavar="N", help="samples of each case and variant; default: the suite's own")
    lora.add_argument("--setting", default="135m", metavar="NAME", help="model and adapter ranks, see --list (135m)")
    lora.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")
    lora.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    lora.add_argument("--max-num-seqs", type=int, default=16, metavar="N", help="requests that run at once (16)")
    lora.add_argument("--max-batch-tokens", type=int, default=512, metavar="N", help="tokens computed in one step (512)")
    lora.add_argument("--threads", type=int, metavar="N", help="compute threads; default: the usable cores")
    lora.add_argument("--cache-dir", type=Path, metavar="DIR", help="keeps random models and adapters between runs")
    lora.add_argument("--quiet", action="store_true", help="no progress bar and no tables")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    return _list() if args.list else _run_lora(args)


def _run_lora(args: argparse.Namespace) -> int:
    from rich.console import Console

    from evenflow.base.errors import ConfigError
    from evenflow.base.logs import say
    from evenflow.base.progress import find_teller, tell_nobody
    from evenflow.bench.lora.suite_run import LoRAOptions, SuiteRun, plan_samples
    from evenflow.bench.lora.suites import suite
    from evenflow.bench.lora.tables import suite_table
    from evenflow.report.tables import table_terminal

    suites = [suite(name) for name in _names(args.suite)]
    if not suites:
        raise ConfigError("--suite names no suite; --list shows them")
    if args.rounds is not None and args.rounds < 1:
        raise ConfigError(f"--rounds is {args.rounds}; allowed: 1 or more")
    planned = plan_samples(suites, _names(args.variants), args.rounds)
    budget_s = _budget_s(args.budget)
    options = LoRAOptions(
        setting=args.setting,
        dtype=args.dtype,
        device=args.device,
        max_num_seqs=args.max_num_seqs,
        max_batch_tokens=args.max_batch_tokens,
        num_threads=args.threads,
    )
    path = args.json or Path("lora.json")
    for file in (path, args.html):
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"cannot write {file}: there is no folder {file.parent}")
    run_of_lora = SuiteRun(path, options, args.cache_dir or default_cache_dir())
    with contextlib.nullcontext(tell_nobody) if args.quiet else find_teller(say) as tell:
        tell("preparing", 0, len(planned))
        counts = run_of_lora.run(planned, budget_s, tell)
    if args.html is not None:
        from evenflow.bench.lora.lora_page import lora_page

        lora_page(run_of_lora.document).write(args.html)
    if not args.quiet:
        console = Console()
        for name in _names(args.suite):
            if name in run_of_lora.document["results"]:
                headers, rows = suite_table(run_of_lora.document["results"][name])
                console.print(table_terminal(headers, rows, title=name))
        left = f", {counts.left} left: the same command continues" if counts.left else ""
        console.print(f"{counts.measured} samples measured, {counts.kept} were there{left}", highlight=False, markup=False)
        for file in (path, args.html):
            if file is not None and file.exists():
                console.print(f"wrote {file}", highlight=False, markup=False)
    return 0


def _list() -> int:
    from rich.console import Console

    from evenflow.bench.lora.settings import OURS
    from evenflow.bench.lora.suites import SUITES
    from evenflow.bench.lora.variant_names import PEERS, VARIANTS
    from evenflow.bench.replay.slora_settings import SETTINGS

    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print("suites")
    for suite in SUITES.values():
        variants = dict.fromkeys(name for case in suite.cases for name in case.variants or suite.variants)
        size = f"{len(suite.cases)} cases, {suite.rounds} round{'s' * (suite.rounds > 1)}, {', '.join(variants)}"
        console.print(f"  {suite.name:14s} {suite.text} [{size}]")
    console.print("variants")
    for name, text in {**VARIANTS, **PEERS}.items():
        console.print(f"  {name:14s} {text}")
    console.print("settings")
    for setting in {**OURS, **SETTINGS}.values():
        console.print(f"  {setting.name:14s} {setting.model}, ranks {', '.join(map(str, setting.lora_ranks))}")
    console.print("  S-LoRA's also as NAME/2, NAME/4 and NAME/8: a part of depth, width and ranks")
    return 0


def default_cache_dir() -> Path:
    """Below the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evenflow" / "bench"


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _budget_s(text: str) -> float | None:
    from evenflow.base.errors import ConfigError

    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match:
        raise ConfigError(f"--budget is {text!r}; allowed: a number and s, m or h, like 30m")
    return float(match.group(1)) * {"s": 1, "m": 60, "h": 3600}[match.group(2)]
