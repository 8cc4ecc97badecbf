"""Workloads by name: arrivals x lengths x clients x adapter popularity, generated from a seed.

The paper's suites (VTC, section 5 and its revision) with the rates, lengths, windows and durations of the published
configuration, and those that the paper lacks: burst after idle, equal demands with weights, 100,000 clients, skewed adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from evenflow.base.errors import RegistryError
from evenflow.bench.replay.arrivals import Rate, burst, constant, on_off, phases, ramp
from evenflow.bench.replay.slora_workload import parse_slora
from evenflow.bench.replay.trace import Trace


@dataclass(frozen=True, slots=True)
class ClientLoad:
    """What one client sends. Lengths are (lowest, highest) tokens, drawn uniformly; equal ends are a fixed length."""

    rate: Rate
    input_len: tuple[int, int] = (256, 256)
    output_len: tuple[int, int] = (256, 256)
    weight: float = 1.0
    num_adapters: int = 0
    """0: base model. n: each request picks one of the client's own n adapters, the k-th with probability ~ 1 / k."""


def generate(
    name: str, loads: Sequence[ClientLoad], seed: int, *, is_poisson: bool = False, horizon_s: float, description: str = ""
) -> Trace:
    """One trace of all clients, named by their index. Every client has a random stream of its own."""
    columns: list[tuple[np.ndarray, ...]] = []
    adapters: list[str] = []
    for i, (load, stream) in enumerate(zip(loads, np.random.SeedSequence(seed).spawn(len(loads)), strict=True)):
        rng = np.random.default_rng(stream)
        times = load.rate.arrivals(rng, is_poisson=is_poisson)
        count = len(times)
        adapter = np.full(count, -1)
        if load.num_adapters:
            popularity = 1.0 / np.arange(1, load.num_adapters + 1)
            adapter = len(adapters) + rng.choice(load.num_adapters, count, p=popularity / popularity.sum())
            adapters += [f"{i}-{k}" for k in range(load.num_adapters)]
        inputs = rng.integers(load.input_len[0], load.input_len[1], count, endpoint=True)
        outputs = rng.integers(load.output_len[0], load.output_len[1], count, endpoint=True)
        columns.append((times, np.full(count, i), inputs, outputs, adapter))
    times, client, inputs, outputs, adapter = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    order = np.argsort(times, kind="stable")
    return Trace(
        name=name,
        clients=tuple(str(i) for i in range(len(loads))),
        arrival_s=times[order],
        client_index=client[order].astype(np.int64),
        input_len=inputs[order].astype(np.int64),
        output_len=outputs[order].astype(np.int64),
        adapters=tuple(adapters),
        adapter_index=adapter[order].astype(np.int64) if adapters else None,
        weight_by_client={str(i): load.weight for i, load in enumerate(loads) if load.weight != 1.0},
        horizon_s=horizon_s,
        description=description,
    )


def zipf_clients(
    seed: int, num_clients: int = 100_000, num_requests: int = 200_000, end_s: float = 600.0, exponent: float = 1.0
) -> Trace:
    """Poisson arrivals; the client of rank k sends in proportion to k^-exponent; short requests of 8-64 in, 4-32 out."""
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, num_clients + 1) ** exponent
    client = rng.choice(num_clients, num_requests, p=popularity / popularity.sum())
    return Trace(
        name="zipf_100k",
        clients=tuple(str(i) for i in range(num_clients)),
        arrival_s=np.sort(rng.uniform(0.0, end_s, num_requests)),
        client_index=client.astype(np.int64),
        input_len=rng.integers(8, 64, num_requests, endpoint=True),
        output_len=rng.integers(4, 32, num_requests, endpoint=True),
        horizon_s=end_s,
        description=f"{num_clients:,} clients by Zipf's law, {num_requests:,} requests",
    )


def arena_like(seed: int) -> Trace:
    """In the likeness of VTC's real trace, which is not ours to ship: 27 clients, 1,500 requests in 600 s, four clients with
    most of the demand, long-tailed lengths (input: median 40, up to 1,021; output: median 210, up to 977).
    """
    rng = np.random.default_rng(seed)
    counts = np.array(ARENA_COUNTS)
    num_requests = int(counts.sum())
    return Trace(
        name="arena_like",
        clients=tuple(str(i) for i in range(len(counts))),
        arrival_s=np.sort(rng.uniform(0.0, 600.0, num_requests)),
        client_index=rng.permutation(np.repeat(np.arange(len(counts)), counts)),
        input_len=np.clip(rng.lognormal(np.log(40), 1.65, num_requests), 1, 1021).astype(np.int64),
        output_len=np.clip(rng.lognormal(np.log(210), 0.95, num_requests), 1, 977).astype(np.int64),
        horizon_s=600.0,
        description="27 clients, 1,500 requests in 600 s, in the likeness of VTC's real trace",
    )


ARENA_COUNTS = (296, 262, 199, 120, 67, 66, 56, 46, 42, 38, 36, 33, 31, 29, 27, 25, 23, 21, 19, 17, 14, 11, 9, 6, 4, 2, 1)
"""Requests per client, the largest first."""


def make_workload(name: str, seed: int = 0) -> Trace:
    """The workload called ``name``, or ``slora:n=32,alpha=0.3,...``. Raises RegistryError listing the known names."""
    kind, colon, argument = name.partition(":")
    if colon and kind == "slora":
        return parse_slora(argument, seed)
    try:
        recipe = WORKLOADS[name]
    except KeyError:
        raise RegistryError(f"unknown workload {name!r}; known: {', '.join(sorted(WORKLOADS))}") from None
    return recipe(seed)


def _even(name: str, rates: Sequence[Rate], horizon_s: float, length: int, text: str) -> Callable[[int], Trace]:
    loads = [ClientLoad(rate, (length, length), (length, length)) for rate in rates]
    return lambda seed: generate(name, loads, seed, horizon_s=horizon_s, description=text)


def _constant(name: str, rates: Sequence[float], end_s: float, horizon_s: float, length: int = 256) -> Callable[[int], Trace]:
    text = f"{len(rates)} clients at {', '.join(f'{r:g}' for r in rates)} requests/s for {end_s:g} s, {length} in, {length} out"
    return _even(name, [constant(rate, end_s) for rate in rates], horizon_s, length, text)


def _short_long(name: str, first: tuple[int, int], second: tuple[int, int]) -> Callable[[int], Trace]:
    loads = [
        ClientLoad(constant(8.0, 600.0), (first[0], first[0]), (first[1], first[1])),
        ClientLoad(constant(1.5, 600.0), (second[0], second[0]), (second[1], second[1])),
    ]
    text = f"Poisson: 8 requests/s of {first[0]} in, {first[1]} out against 1.5/s of {second[0]} in, {second[1]} out, 600 s"
    return lambda seed: generate(name, loads, seed, is_poisson=True, horizon_s=600.0, description=text)


def _poisson_on_off(seed: int) -> Trace:
    lengths = (16, 511)
    loads = [ClientLoad(on_off(0.5, 600.0), lengths, lengths), ClientLoad(constant(2.0, 600.0), lengths, lengths)]
    text = "Poisson: 0.5 requests/s every other minute against 2/s, 16-511 in and out, 600 s"
    return generate("poisson_on_off_overload", loads, seed, is_poisson=True, horizon_s=600.0, description=text)


def _burst_after_idle(seed: int) -> Trace:
    loads = [ClientLoad(constant(0.7, 1000.0)), ClientLoad(burst(600.0, 400))]
    text = "client 0 steady at 0.7 requests/s for 1,000 s; client 1 idle, then 400 requests at 600 s; 256 in, 256 out"
    return generate("burst_after_idle", loads, seed, horizon_s=1000.0, description=text)


def _weighted_equal_demand(seed: int) -> Trace:
    loads = [ClientLoad(constant(1.2, 360.0), weight=float(w)) for w in (1, 2, 3, 4)]
    text = "4 clients, weights 1:2:3:4, each 1.2 requests/s for 360 s, 256 in, 256 out"
    return generate("weighted_equal_demand", loads, seed, horizon_s=360.0, description=text)


def _adapter_skewed(seed: int) -> Trace:
    scattered = ClientLoad(constant(4.0, 300.0), (128, 128), (64, 64), num_adapters=400)
    focused = ClientLoad(constant(4.0, 300.0), (128, 128), (64, 64), num_adapters=1)
    text = "4 clients, 4 requests/s each for 300 s, 128 in, 64 out: client 0 uses 400 adapters, the others one each"
    return generate("adapter_skewed", [scattered] + [focused] * 3, seed, is_poisson=True, horizon_s=300.0, description=text)


_DIST_SHIFT = (
    phases(on_off(0.5, 300.0), constant(1.0, 600.0, 300.0), constant(0.5, 900.0, 600.0)),
    phases(constant(2.0, 300.0), constant(1.0, 600.0, 300.0), constant(1.5, 900.0, 600.0)),
)

WORKLOADS: Mapping[str, Callable[[int], Trace]] = MappingProxyType(
    {
        # the overload suites send for 360 s and are measured to 600 s: the queues last longer than the arrivals
        "overload": _constant("overload", [1.5, 3.0], 360.0, 600.0),
        "overload_multi": _constant("overload_multi", [0.4] * 3 + [0.6] * 5, 360.0, 600.0),
        "overload_weighted": _constant("overload_weighted", [0.8, 0.8, 1.2, 1.6], 360.0, 600.0),
        "proportional": _constant("proportional", [0.25, 0.5, 1.5], 600.0, 600.0),
        "on_off_less": _even(
            "on_off_less",
            [on_off(0.5, 600.0), constant(2.0, 600.0)],
            600.0,
            256,
            "0.5 requests/s every other minute against 2/s",
        ),
        "on_off_overload": _even(
            "on_off_overload",
            [on_off(2.0, 600.0), constant(3.0, 600.0)],
            600.0,
            256,
            "2 requests/s every other minute against 3/s",
        ),
        "poisson_short_long": _short_long("poisson_short_long", (64, 64), (256, 256)),
        "poisson_short_long_2": _short_long("poisson_short_long_2", (512, 32), (32, 512)),
        "increase": _even(
            "increase", [constant(0.5, 600.0), ramp(0.2, 2.0, 600.0)], 600.0, 256, "0.5 requests/s against 0.2 rising to 2/s"
        ),
        "dist_shift": _even(
            "dist_shift", _DIST_SHIFT, 900.0, 256, "300 s each: 0.5 (on/off) against 2/s; 1 against 1/s; 0.5 against 1.5/s"
        ),
        "poisson_on_off_overload": _poisson_on_off,
        "overload_s4_256_pool35000": _constant("overload_s4_256_pool35000", [3.0, 6.0], 600.0, 600.0, 256),
        "overload_s4_512_pool35000": _constant("overload_s4_512_pool35000", [1.5, 3.0], 600.0, 600.0, 512),
        "overload_s4_768_pool35000": _constant("overload_s4_768_pool35000", [1.0, 2.0], 600.0, 600.0, 768),
        "overload_s4_256_pool65000": _constant("overload_s4_256_pool65000", [4.0, 8.0], 600.0, 600.0, 256),
        "overload_s4_512_pool65000": _constant("overload_s4_512_pool65000", [2.0, 4.0], 600.0, 600.0, 512),
        "overload_s4_768_pool65000": _constant("overload_s4_768_pool65000", [1.5, 3.0], 600.0, 600.0, 768),
        "rpm_ablation": _constant("rpm_ablation", [0.2, 0.8], 300.0, 300.0),
        "arena_like": arena_like,
        "burst_after_idle": _burst_after_idle,
        "weighted_equal_demand": _weighted_equal_demand,
        "zipf_100k": zipf_clients,
        "adapter_skewed": _adapter_skewed,
        "slora": lambda seed: parse_slora("", seed),
    }
)
"""Every workload by name; each takes a seed."""
