"""What a load sends and when: a trace, made from a seed or read from a file, with prompts of words and model names.

No tokenizer is needed: a prompt is so many common words, of which most tokenizers make about one token each; the figures
count what the server says. Every prompt begins differently, so that a prefix cache finds no more than is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import numpy as np

from evenflow.base.errors import ConfigError
from evenflow.bench.replay.arrivals import burst, constant
from evenflow.bench.replay.trace import Trace
from evenflow.bench.replay.trace_files import read_trace
from evenflow.bench.replay.workload import WORKLOADS, ClientLoad, generate, make_workload

CHAT, COMPLETIONS = "openai-chat", "openai"
"""Backends, named as `vllm bench serve` names them."""
PATHS: Mapping[str, str] = MappingProxyType({CHAT: "chat/completions", COMPLETIONS: "completions"})

_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father power hour "
    "game line end member law car city community name president team minute idea body information back parent face others "
    "level office door health person art war history party result change morning reason research girl guy moment air teacher"
)
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class LoadShape:
    """Sizes of a made-up load. Lengths are (lowest, highest) tokens."""

    rate: float
    """Requests per second of all clients; infinite: all at once."""
    num_requests: int
    num_clients: int
    input_len: tuple[int, int]
    output_len: tuple[int, int]
    seed: int = 0

    @property
    def end_s(self) -> float:
        """When the last request is due, more or less."""
        return self.num_requests / self.rate


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a plan."""

    at_s: float
    """Seconds after the start."""
    client: str
    body: Mapping[str, Any]
    prompt_words: int
    output_len: int


def _loads(shape: LoadShape, rates: Sequence[float]) -> list[ClientLoad]:
    # A quarter more than is wanted is drawn, so that cutting to the number of requests leaves the rate as it is.
    end_s = shape.end_s * 1.25 + 5 / shape.rate
    return [ClientLoad(constant(rate, end_s), shape.input_len, shape.output_len) for rate in rates]


def _chat(shape: LoadShape) -> Trace:
    even = [shape.rate / shape.num_clients] * shape.num_clients
    return generate("chat", _loads(shape, even), shape.seed, is_poisson=True, horizon_s=shape.end_s)


def _flood(shape: LoadShape) -> Trace:
    if shape.num_clients < 2:
        raise ConfigError(f"--workload flood needs two clients or more; --num-clients is {shape.num_clients}")
    quiet = 0.2 * shape.rate / (shape.num_clients - 1)
    rates = [0.8 * shape.rate] + [quiet] * (shape.num_clients - 1)
    return generate("flood", _loads(shape, rates), shape.seed, is_poisson=True, horizon_s=shape.end_s)


def _at_once(shape: LoadShape, name: str) -> Trace:
    """Everything at once, the clients in turn."""
    each, more = divmod(shape.num_requests, shape.num_clients)
    counts = [each + (i < more) for i in range(shape.num_clients)]
    loads = [ClientLoad(burst(0.0, count), shape.input_len, shape.output_len) for count in counts if count]
    trace = generate(name, loads, shape.seed, horizon_s=1.0)
    return replace(trace, arrival_s=np.zeros(len(trace)))


@dataclass(frozen=True, slots=True)
class LoadWorkload:
    """A made-up load by name."""

    backend: str
    num_clients: int
    input_len: tuple[int, int]
    output_len: tuple[int, int]
    make: Callable[[LoadShape], Trace]


LOADS: Mapping[str, LoadWorkload] = MappingProxyType(
    {
        "chat": LoadWorkload(CHAT, 4, (16, 128), (16, 96), _chat),
        "flood": LoadWorkload(COMPLETIONS, 4, (32, 128), (32, 128), _flood),
        "poisson": LoadWorkload(COMPLETIONS, 1, (128, 128), (64, 64), _chat),
    }
)  # fmt: skip
"""chat: clients that ask short questions, each a Poisson process. flood: the first client sends four fifths of all requests.
poisson: one client. Beside them there is every workload of `evenflow replay`, and traces in CSV files.
"""


def make_trace(name: str, shape: LoadShape | None) -> Trace:
    """The trace of a load of LOADS, of a workload of `evenflow replay`, or of a CSV file. Raises ConfigError.

    ``shape`` is for LOADS alone; of the others seed and number of requests are kept (None: seed 0, all of them).
    """
    if name in LOADS:
        assert shape is not None, "a made-up load has sizes"
        trace = _at_once(shape, name) if np.isinf(shape.rate) else LOADS[name].make(shape)
        return first_requests(trace, shape.num_requests)
    if name in WORKLOADS or name.startswith("slora:"):
        return make_workload(name, 0 if shape is None else shape.seed)
    if Path(name).suffix == ".csv":
        return read_trace(Path(name))
    known = ", ".join([*LOADS, *sorted(WORKLOADS)])
    raise ConfigError(f"--workload is {name!r}; allowed: {known}, slora:..., or the path of a CSV trace")


def first_requests(trace: Trace, count: int) -> Trace:
    """The first ``count`` requests of a trace."""
    return replace(
        trace,
        arrival_s=trace.arrival_s[:count],
        client_index=trace.client_index[:count],
        input_len=trace.input_len[:count],
        output_len=trace.output_len[:count],
        adapter_index=None if trace.adapter_index is None else trace.adapter_index[:count],
        horizon_s=trace.horizon_s,
    )


@dataclass(frozen=True, slots=True)
class RequestForm:
    """What every request of a load has in common."""

    backend: str
    model: str
    adapters: tuple[str, ...] = ()
    """Models that requests are spread over instead of ``model``."""
    is_round_robin: bool = False
    """Take the adapters in turn, not at random."""
    prefix_len: int = 0
    """Words that all prompts begin with."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every body; one that is None is left out."""


def plan_requests(trace: Trace, form: RequestForm, seed: int, prompts: Sequence[str] = ()) -> list[PlannedRequest]:
    """Requests of a trace in order of time, the same for the same seed. ``prompts`` are used in turn instead of words.

    A trace's own adapters are spread over ``form.adapters``: two requests of one adapter of the trace go to one model.
    """
    rng = Random(f"prompts {seed}")
    prefix = " ".join(rng.choice(WORDS) for _ in range(form.prefix_len))
    turn = itertools.cycle(prompts) if prompts else None
    models = _models(trace, form, Random(f"models {seed}"))
    planned = []
    for row, model in zip(trace, models, strict=True):
        text = next(turn) if turn else " ".join(filter(None, (prefix, _words(rng, row.input_len - form.prefix_len))))
        asked = {"messages": [{"role": "user", "content": text}]} if form.backend == CHAT else {"prompt": text}
        body = {"model": model, **asked, "max_tokens": row.output_len, **form.extra}
        planned.append(PlannedRequest(row.arrival_s, row.client, body, len(text.split()), row.output_len))
    return planned


def _words(rng: Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(max(1, count)))


def _models(trace: Trace, form: RequestForm, rng: Random) -> Iterator[str]:
    if not form.adapters:
        return itertools.repeat(form.model, len(trace))
    if trace.adapter_index is not None:
        adapters = form.adapters
        return iter([adapters[k % len(adapters)] if k >= 0 else form.model for k in trace.adapter_index.tolist()])
    if form.is_round_robin:
        return itertools.islice(itertools.cycle(form.adapters), len(trace))
    return iter([rng.choice(form.adapters) for _ in range(len(trace))])
