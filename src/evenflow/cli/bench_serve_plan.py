"""From the options of `evenflow bench serve` to its plan: read strictly, with what is allowed in every message."""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from evenflow.base.errors import ConfigError
from evenflow.bench.load.figures import Objectives
from evenflow.bench.load.load_plan import (
    COMPLETIONS,
    LOADS,
    LoadShape,
    RequestForm,
    first_requests,
    make_trace,
)
from evenflow.bench.load.naming import ByKey, Naming
from evenflow.bench.replay.trace import Trace

_NUM_REQUESTS = 100


def base_url_of(url: str) -> str:
    """The address below which ``completions`` lies, with a slash at its end. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"--url is {url!r}; allowed: http://HOST[:PORT][/PATH] or https://...")
    return parts._replace(path=(parts.path.rstrip("/") or "/v1") + "/", query="", fragment="").geturl()


def headers_of(pairs: list[str]) -> dict[str, str]:
    """Headers from KEY=VALUE. Raises ConfigError."""
    headers = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9-]+", name):
            raise ConfigError(f"--header is {pair!r}; allowed: KEY=VALUE")
        headers[name] = value
    return headers


def objectives_of(args: argparse.Namespace) -> Objectives:
    """What a good answer is. Raises ConfigError."""
    found = []
    for flag, value in (("ttft", args.slo_ttft), ("itl", args.slo_itl), ("e2e", args.slo_e2e)):
        if value is not None and not value > 0:
            raise ConfigError(f"--slo-{flag} is {value:g}; allowed: milliseconds above 0")
        found.append(None if value is None else value / 1e3)
    return Objectives(*found)


def percentiles_of(text: str) -> tuple[float, ...]:
    """Percentiles from `50,99`. Raises ConfigError."""
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or not all(0 < percent <= 100 for percent in found):
        raise ConfigError(f"--metric-percentiles is {text!r}; allowed: numbers above 0 up to 100, like 50,99")
    return found


def backend_of(args: argparse.Namespace) -> str:
    """The backend that is asked for, or the workload's own."""
    load = LOADS.get(args.workload)
    return args.backend or (load.backend if load else COMPLETIONS)


def trace_of(args: argparse.Namespace, naming: Naming) -> Trace:
    """Who sends how much and when. Raises ConfigError."""
    _check_numbers(args)
    load = LOADS.get(args.workload)
    if load is None:
        for flag, value in (
            ("--num-clients", args.num_clients),
            ("--input-len", args.input_len),
            ("--output-len", args.output_len),
        ):
            if value is not None:
                raise ConfigError(f"{flag} is for the workloads {', '.join(LOADS)}; {args.workload} says its own")
        trace = make_trace(args.workload, LoadShape(1.0, 1, 1, (1, 1), (1, 1), args.seed))
        if args.duration is not None:
            trace = first_requests(trace, int((trace.arrival_s < args.duration).sum()))
        trace = first_requests(trace, args.num_prompts or len(trace))
    else:
        count = args.num_prompts or _NUM_REQUESTS
        if args.duration is not None:
            if math.isinf(args.request_rate):
                raise ConfigError("--duration needs a finite --request-rate; with inf give --num-prompts")
            count = max(1, round(args.request_rate * args.duration))
        shape = LoadShape(
            rate=args.request_rate,
            num_requests=count,
            num_clients=_clients(args, load.num_clients, naming),
            input_len=_lengths("--input-len", args.input_len, load.input_len),
            output_len=_lengths("--output-len", args.output_len, load.output_len),
            seed=args.seed,
        )
        trace = make_trace(args.workload, shape)
    if not len(trace):
        raise ConfigError("the load has no request; give a longer --duration")
    return _named(trace, naming)


def form_of(args: argparse.Namespace, backend: str) -> RequestForm:
    """What all requests have in common, but for the model. Raises ConfigError."""
    extra: dict[str, Any] = {"temperature": args.temperature, **({"ignore_eos": True} if args.ignore_eos else {})}
    try:
        more = json.loads(args.extra_body)
    except ValueError:
        more = None
    if not isinstance(more, dict):
        raise ConfigError(f"--extra-body is {args.extra_body!r}; allowed: a JSON object")
    return RequestForm(
        backend=backend,
        model=args.model or "",
        adapters=tuple(args.lora_modules),
        is_round_robin=args.lora_assignment == "round-robin",
        prefix_len=args.prefix_len,
        extra={**extra, **more},
    )


def prompts_of(args: argparse.Namespace) -> list[str]:
    """The lines of ``--prompts``, or none. Raises ConfigError."""
    if args.prompts is None:
        return []
    try:
        lines = [line for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompts {args.prompts} cannot be read: {error}") from None
    if not lines:
        raise ConfigError(f"--prompts {args.prompts} has no text")
    return lines


def _check_numbers(args: argparse.Namespace) -> None:
    if not args.request_rate > 0:
        raise ConfigError(f"--request-rate is {args.request_rate:g}; allowed: above 0, or inf")
    if args.num_prompts is not None and args.duration is not None:
        raise ConfigError("--num-prompts and --duration exclude each other")
    for flag, value, least in (
        ("--num-prompts", args.num_prompts, 1), ("--num-clients", args.num_clients, 1), ("--timeout", args.timeout, 1e-3),
        ("--max-concurrency", args.max_concurrency, 1), ("--duration", args.duration, 1e-3),
        ("--num-warmups", args.num_warmups, 0),
        ("--prefix-len", args.prefix_len, 0),
    ):  # fmt: skip
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"{flag} is {value:g}; allowed: {least:g} or more")


def _lengths(flag: str, text: str | None, default: tuple[int, int]) -> tuple[int, int]:
    if text is None:
        return default
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise ConfigError(f"{flag} is {text!r}; allowed: N or N-M, from 1, like 128 or 16-64")
    return low, high


def _clients(args: argparse.Namespace, default: int, naming: Naming) -> int:
    if args.num_clients is not None:
        return int(args.num_clients)
    return len(naming.keys) if isinstance(naming, ByKey) else default


def _named(trace: Trace, naming: Naming) -> Trace:
    """The trace with the clients' names: those of the keys, in order, else ``client-0`` for the bare numbers of workloads."""
    if isinstance(naming, ByKey):
        if len(trace.clients) > len(naming.keys):
            raise ConfigError(f"the load has {len(trace.clients)} clients, --client-keys only {len(naming.keys)}")
        return replace(trace, clients=tuple(naming.keys)[: len(trace.clients)], weight_by_client={})
    return replace(
        trace, clients=tuple(f"client-{name}" if name.isdigit() else name for name in trace.clients), weight_by_client={}
    )
