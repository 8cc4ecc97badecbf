"""``evenflow bench serve``: an open-loop load on any OpenAI-compatible server, timed and summed up by client."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evenflow.bench.load.open_loop import LoadRun

_INTERRUPTED = 130


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "serve",
        help="load on any OpenAI-compatible server: latencies, goodput, errors, share and service of every client",
        description="Send requests when they are due, whether or not those before are answered, stream the answers, and say "
        "how long clients waited. Flags that `vllm bench serve` and GuideLLM have are named and mean the same. Ctrl-C ends "
        "the load and shows what there is so far.",
        epilog="examples:\n"
        "  evenflow bench serve --url http://127.0.0.1:8000/v1 --workload chat --request-rate 4 --num-prompts 200\n"
        "  evenflow bench serve --url http://HOST/v1 --workload flood --duration 60 --slo-ttft 500 --slo-itl 50\n"
        "  evenflow bench serve --url http://HOST/v1 --workload poisson --num-clients 8 --client-as user --lora-modules a b c\n"
        "workloads:\n"
        "  chat         clients that ask short questions, each a Poisson process\n"
        "  flood        the first client sends four fifths of all requests, the others the rest\n"
        "  poisson      one client, a Poisson process; more with --num-clients\n"
        "  overload ... every workload of `evenflow replay`; or FILE.csv, a trace\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_argument_group("server")
    where.add_argument(
        "--url", "--base-url", "--target", required=True, help="e.g. http://127.0.0.1:8000/v1; without a path: /v1"
    )
    where.add_argument("--model", metavar="NAME", help="default: the first that the server lists")
    where.add_argument("--backend", choices=("openai", "openai-chat"), help="completions or chat; default: the workload's own")
    where.add_argument("--api-key", metavar="KEY", help="default: OPENAI_API_KEY of the environment")
    where.add_argument(
        "--header", action="append", default=[], metavar="KEY=VALUE", help="a header of every request; repeatable"
    )
    where.add_argument("--extra-body", default="{}", metavar="JSON", help="fields of every body; null removes one of ours")
    where.add_argument("--timeout", type=float, default=600.0, metavar="S", help="longest pause within an answer (600)")
    where.add_argument(
        "--ready-check-timeout-sec",
        type=float,
        default=0.0,
        metavar="S",
        help="wait so long for the server to list its models (0)",
    )
    what = parser.add_argument_group("load")
    what.add_argument("--workload", required=True, metavar="NAME", help="what is sent, see below")
    what.add_argument(
        "--request-rate", "--rate", type=float, default=2.0, metavar="R", help="requests per second; inf: all at once (2)"
    )
    what.add_argument("--num-prompts", "--max-requests", type=int, metavar="N", help="requests to send (100)")
    what.add_argument("--duration", "--max-seconds", type=float, metavar="S", help="send for so long, instead of --num-prompts")
    what.add_argument("--num-clients", type=int, metavar="N", help="default: the workload's own")
    what.add_argument("--input-len", "--random-input-len", metavar="N[-M]", help="words of a prompt, about a token each")
    what.add_argument("--output-len", "--random-output-len", metavar="N[-M]", help="most tokens of an answer")
    what.add_argument(
        "--prefix-len", "--random-prefix-len", type=int, default=0, metavar="N", help="words that all prompts share (0)"
    )
    what.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line, used in turn, instead of words")
    what.add_argument(
        "--ignore-eos", action="store_true", help="ask for answers of full length (vLLM's extension; EvenFlow has it)"
    )
    what.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: greedy (0)")
    what.add_argument(
        "--lora-modules", "--adapters", nargs="+", default=[], metavar="NAME", help="spread requests over these models"
    )
    what.add_argument("--lora-assignment", choices=("random", "round-robin"), default="random", help="how (random)")
    what.add_argument("--max-concurrency", type=int, metavar="N", help="requests under way at most; others are sent late")
    what.add_argument("--num-warmups", type=int, default=0, metavar="N", help="requests before the load, one after another (0)")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of arrivals, lengths, words and models (0)")
    who = parser.add_argument_group("clients")
    who.add_argument(
        "--client-as",
        default="header",
        metavar="HOW",
        help="header[:NAME], user (field) or key; default: header:x-evenflow-client",
    )
    who.add_argument("--client-keys", type=Path, metavar="FILE", help="with --client-as key: lines `NAME KEY`")
    told = parser.add_argument_group("figures")
    told.add_argument("--slo-ttft", type=float, metavar="MS", help="a good answer begins within so many milliseconds")
    told.add_argument(
        "--slo-itl", type=float, metavar="MS", help="and takes so many per output token after the first, on average"
    )
    told.add_argument("--slo-e2e", type=float, metavar="MS", help="and ends within so many")
    told.add_argument("--metric-percentiles", default="50,90,95,99", metavar="P,...", help="(50,90,95,99)")
    told.add_argument("--json", type=Path, metavar="FILE", help="write figures and a row for every request")
    told.add_argument("--save-detailed", action="store_true", help="with --json: also when every token came")
    told.add_argument("--quiet", "--disable-tqdm", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status: 0, 1 if no request was answered, 130 after Ctrl-C."""
    import asyncio

    from rich.console import Console

    from evenflow.base.errors import ConfigError
    from evenflow.bench.load.figures import summarise
    from evenflow.bench.load.load_document import load_document, load_tables
    from evenflow.cli.bench_serve_plan import objectives_of, percentiles_of
    from evenflow.report.page import write_whole

    objectives, percentiles = objectives_of(args), percentiles_of(args.metric_percentiles)
    if args.json is not None and not args.json.parent.is_dir():
        raise ConfigError(f"cannot write {args.json}: there is no folder {args.json.parent}")
    done = asyncio.run(_load(args))
    figures = summarise(done.requests, done.began_s, done.ended_s, objectives, percentiles)
    console = Console()
    for table in load_tables(figures, objectives):
        console.print(table)
    if done.is_interrupted:
        console.print(f"interrupted: {len(done.requests)} of {done.num_planned} requests had been sent", highlight=False)
    if args.json is not None:
        document = load_document(done, figures, _parameters(args), is_detailed=args.save_detailed)
        write_whole(args.json, document.encode())
        console.print(f"wrote {args.json}", highlight=False, markup=False)
    return _INTERRUPTED if done.is_interrupted else int(not figures["num_ok"])


async def _load(args: argparse.Namespace) -> LoadRun:
    import asyncio
    import signal
    from dataclasses import replace

    from evenflow.base.logs import say
    from evenflow.base.progress import find_teller, tell_nobody
    from evenflow.bench.load.load_plan import PATHS, plan_requests
    from evenflow.bench.load.naming import parse_naming
    from evenflow.bench.load.open_loop import http_client, send_load
    from evenflow.bench.load.served_models import served_models
    from evenflow.cli.bench_serve_plan import backend_of, base_url_of, form_of, headers_of, prompts_of, trace_of

    naming = parse_naming(args.client_as, args.api_key or os.environ.get("OPENAI_API_KEY"), args.client_keys)
    backend, trace, prompts = backend_of(args), trace_of(args, naming), prompts_of(args)
    form = form_of(args, backend)
    async with http_client(base_url_of(args.url), args.timeout) as http:
        http.headers.update(headers_of(args.header))
        if not form.model or args.ready_check_timeout_sec > 0:
            listed = await served_models(http, naming.headers(trace.clients[0]), args.ready_check_timeout_sec)
            form = replace(form, model=form.model or next(iter(listed), ""))
        plan = plan_requests(trace, form, args.seed, prompts)
        for planned in plan[: args.num_warmups]:
            await send_load(http, PATHS[backend], [replace(planned, at_s=0.0)], naming)
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        with contextlib.nullcontext(tell_nobody) if args.quiet else find_teller(say) as teller:
            return await send_load(
                http,
                PATHS[backend],
                plan,
                naming,
                max_concurrency=args.max_concurrency,
                stop=stop,
                tell=lambda run: teller(_progress(run), run.num_ended, run.num_planned),
            )


def _progress(run: LoadRun) -> str:
    failed = sum(request.ended_s is not None and request.outcome != "ok" for request in run.requests)
    return f"requests ({run.num_in_flight} under way{f', {failed} failed' if failed else ''})"


def _parameters(args: argparse.Namespace) -> dict[str, object]:
    """The options of a load, without secrets."""
    hidden = ("api_key", "header", "command", "bench_command", "log_level", "config", "json", "quiet", "save_detailed")

    def plain(value: object) -> object:
        return str(value) if isinstance(value, Path) or (isinstance(value, float) and math.isinf(value)) else value

    return {name: plain(value) for name, value in vars(args).items() if name not in hidden}
