"""S-LoRA's requests: rate, burstiness, adapter popularity and lengths from a seed (its section 7.1 and its generator).

Two forms, because the paper's text and its published generator are not the same process:

* ``merged``: one Gamma process of rate R; every request draws its adapter (what was run, reproduced draw for draw);
* ``per-adapter``: adapter i sends by a Gamma process of its own with rate lambda_i (what the text says).

With cv = 1 both are Poisson and agree; with bursts they do not: a burst of the merged process hits many adapters at once,
one of a process of its own hits one adapter. Popularity is the same in both: a share of (k / n)^alpha for the first k of n
adapters, so alpha = 1 is uniform and a smaller alpha is more skewed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from evenflow.base.errors import ConfigError
from evenflow.bench.replay.trace import Trace

Arrivals = Literal["merged", "per-adapter"]
PAPER_SEED = 42


def slora_workload(
    num_adapters: int = 200,
    *,
    rate: float = 2.0,
    alpha: float = 1.0,
    cv: float = 1.0,
    duration_s: float = 300.0,
    input_range: tuple[int, int] = (8, 512),
    output_range: tuple[int, int] = (8, 512),
    seed: int = PAPER_SEED,
    arrivals: Arrivals = "merged",
    adapter_names: Sequence[str] | None = None,
    client_per_adapter: bool = True,
) -> Trace:
    """Requests to ``num_adapters`` adapters (0: the base model) at ``rate`` requests/s in all; defaults: the paper's A10G.

    ``cv``: coefficient of variation of the gaps. Length ranges are tokens, the upper end exclusive, as published.
    ``client_per_adapter``: the clients are the adapters, as in VTC's server; else one client sends everything.
    ``merged`` sends int(rate x duration) requests and may end before or after ``duration_s``; ``per-adapter`` sends for
    ``duration_s``. Raises ConfigError naming what is out of range.
    """
    _check(num_adapters, rate, alpha, cv, duration_s, input_range, output_range)
    names = tuple(adapter_names) if adapter_names is not None else tuple(f"adapter-{i}" for i in range(num_adapters))
    if len(names) != num_adapters:
        raise ConfigError(f"{len(names)} adapter names for {num_adapters} adapters")
    if arrivals == "merged":
        times, chosen, inputs, outputs = _merged(num_adapters, rate, alpha, cv, duration_s, input_range, output_range, seed)
    elif arrivals == "per-adapter":
        times, chosen, inputs, outputs = _per_adapter(
            num_adapters, rate, alpha, cv, duration_s, input_range, output_range, seed
        )
    else:
        raise ConfigError(f"arrivals is {arrivals!r}; allowed: merged, per-adapter")
    with_adapters = num_adapters > 0
    own_clients = with_adapters and client_per_adapter
    return Trace(
        name="slora",
        clients=names if own_clients else ("0",),
        arrival_s=times,
        client_index=chosen if own_clients else np.zeros(len(times), np.int64),
        input_len=inputs,
        output_len=outputs,
        adapters=names,
        adapter_index=chosen if with_adapters else None,
        horizon_s=duration_s,
        description=f"S-LoRA: {num_adapters} adapters, {rate:g} requests/s for {duration_s:g} s, alpha {alpha:g}, cv {cv:g}, "
        f"{input_range[0]}-{input_range[1] - 1} in, {output_range[0]}-{output_range[1] - 1} out, {arrivals} arrivals",
    )


def popularity(num_adapters: int, alpha: float) -> np.ndarray:
    """float64 [adapters]: the share of the requests that each adapter gets, the most popular first (for alpha < 1)."""
    edges = (np.arange(num_adapters + 1) / num_adapters) ** alpha
    return np.diff(edges)


def parse_slora(argument: str, seed: int) -> Trace:
    """``n=200,rate=2,alpha=1,cv=1,duration=300,arrivals=merged``, any of them; ``seed`` 0 is the paper's 42.

    Raises ConfigError naming the pair that makes no sense.
    """
    keywords = {"n": "num_adapters", "rate": "rate", "alpha": "alpha", "cv": "cv", "duration": "duration_s"}
    values: dict[str, float | int | str] = {}
    for pair in filter(None, (part.strip() for part in argument.split(","))):
        key, _, text = pair.partition("=")
        try:
            if key == "n":
                values["num_adapters"] = int(text)
            elif key == "arrivals":
                values["arrivals"] = text
            else:
                values[keywords[key]] = float(text)
        except (KeyError, ValueError):
            allowed = "n=, rate=, alpha=, cv=, duration=, arrivals=merged|per-adapter"
            raise ConfigError(f"slora takes {allowed}; got {pair!r}") from None
    return slora_workload(**values, seed=PAPER_SEED + seed)  # type: ignore[arg-type]


Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _merged(
    num_adapters: int,
    rate: float,
    alpha: float,
    cv: float,
    duration_s: float,
    input_range: tuple[int, int],
    output_range: tuple[int, int],
    seed: int,
) -> Columns:
    """The published generator. The order of the draws is the format: do not change it."""
    rng = np.random.RandomState(seed)
    total = int(rate * duration_s)
    # u = 1 is not in the density's support but in the reach of its rounding
    chosen = np.minimum((rng.power(alpha, total) * num_adapters).astype(np.int64), max(num_adapters - 1, 0))
    inputs = rng.randint(*input_range, total).astype(np.int64)
    outputs = rng.randint(*output_range, total).astype(np.int64)
    gaps = rng.gamma(1 / cv**2, cv**2 / rate, total)
    return np.cumsum(gaps), chosen, inputs, outputs


def _per_adapter(
    num_adapters: int,
    rate: float,
    alpha: float,
    cv: float,
    duration_s: float,
    input_range: tuple[int, int],
    output_range: tuple[int, int],
    seed: int,
) -> Columns:
    """A Gamma process for each adapter, each with a random stream of its own.

    They are in equilibrium: the first gap is the rest of one that began before time 0 (a uniform part of a
    length-biased gap, Gamma(k + 1)). Started at 0 instead, a process of cv 8 would send 31 requests too many, all early.
    """
    shape = 1 / cv**2
    rates = rate * popularity(num_adapters, alpha) if num_adapters else np.array([rate])
    columns: list[Columns] = []
    for i, (adapter_rate, stream) in enumerate(zip(rates, np.random.SeedSequence(seed).spawn(len(rates)), strict=True)):
        rng = np.random.default_rng(stream)
        scale = cv**2 / adapter_rate
        sent = [rng.uniform() * rng.gamma(shape + 1, scale)]
        block = int(adapter_rate * duration_s) + 16
        while sent[-1] < duration_s:
            sent += (sent[-1] + np.cumsum(rng.gamma(shape, scale, block))).tolist()
        arrived = np.array(sent)
        arrived = arrived[arrived < duration_s]
        inputs = rng.integers(*input_range, len(arrived))
        outputs = rng.integers(*output_range, len(arrived))
        columns.append((arrived, np.full(len(arrived), i, np.int64), inputs, outputs))
    times, chosen, inputs, outputs = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    order = np.argsort(times, kind="stable")
    return times[order], chosen[order], inputs[order], outputs[order]


def _check(
    num_adapters: int,
    rate: float,
    alpha: float,
    cv: float,
    duration_s: float,
    input_range: tuple[int, int],
    output_range: tuple[int, int],
) -> None:
    if num_adapters < 0:
        raise ConfigError(f"num_adapters is {num_adapters}; allowed: 0 (base model) and more")
    for name, value in (("rate", rate), ("alpha", alpha), ("cv", cv), ("duration_s", duration_s)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value!r}; allowed: finite and above 0")
    if rate * duration_s < 1:
        raise ConfigError(f"{rate:g} requests/s for {duration_s:g} s are no whole request")
    for name, (low, high) in (("input_range", input_range), ("output_range", output_range)):
        if not 1 <= low < high:
            raise ConfigError(f"{name} is ({low}, {high}); allowed: from 1, the upper end exclusive and above the lower")
