"""Several simulated engines behind a router: everything is served once, and the routers differ as they should."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evenflow.base.errors import ConfigError
from evenflow.bench.replay.fleet import simulate_fleet
from evenflow.bench.replay.fleet_comparison import compare_routers, local_policies, service_by_weight, shared_policies
from evenflow.bench.replay.profiles import ServerSettings
from evenflow.bench.replay.replay import replay
from evenflow.bench.replay.trace import Trace
from evenflow.bench.replay.trace_requests import requests_of
from evenflow.cli.main import main
from evenflow.fairness import WeightedTokens
from evenflow.routing.registry import create_router
from evenflow.serving.engine.simulated import LinearStepTime

SERVER = ServerSettings("small", 2_000, 16, 32, 256, False)
STEP_TIME = LinearStepTime(0.02, 0.0002)


def a_trace(num_requests=300, num_adapters=40, rate=20.0, clients=("a", "b"), seed=0) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        "small",
        tuple(clients),
        np.sort(rng.uniform(0, num_requests / rate, num_requests)),
        rng.integers(0, len(clients), num_requests),
        rng.integers(8, 60, num_requests),
        rng.integers(2, 12, num_requests),
        tuple(f"x{i}" for i in range(num_adapters)),
        np.minimum((rng.power(0.5, num_requests) * num_adapters).astype(np.int64), num_adapters - 1),
    )


def run(trace, count, router="affinity", make=None, until_s=None):
    make = make or local_policies("vtc", {}, None, 0)
    return simulate_fleet(
        requests_of(trace, 1024, True),
        count,
        create_router(router),
        make,
        SERVER,
        STEP_TIME,
        max_model_len=1200,
        until_s=until_s,
    )


@pytest.mark.parametrize("router", ["affinity", "least-loaded", "multiplexed", "random"])
def test_every_request_is_served_once_to_its_last_token(router):
    trace = a_trace()
    done = run(trace, 3, router)
    assert [r.num_output_tokens for r in done.requests] == trace.output_len.tolist()
    assert sum(done.requests_by_replica) == len(trace)
    assert all(r.finished_s >= r.first_token_s > r.arrival_s for r in done.requests)
    assert done.num_adapter_requests == len(trace)


def test_one_engine_of_a_fleet_is_the_engine_that_replays_know():
    trace = a_trace(150)
    alone = replay(trace, "vtc", SERVER, STEP_TIME)
    fleet = run(trace, 1)
    assert [r.first_token_s for r in fleet.requests] == [r.first_token_s for r in alone.log.requests]
    assert fleet.num_adapter_loads == alone.num_adapter_loads


def test_warmth_pays_and_the_same_seed_gives_the_same_run():
    found = {r.router: r for r in compare_routers(a_trace(500), ["affinity", "random"], ["vtc"], [4], SERVER, STEP_TIME)}
    assert found["affinity"].hit_rate > found["random"].hit_rate + 0.2
    assert found["affinity"].num_adapter_loads < 0.6 * found["random"].num_adapter_loads
    assert found["affinity"].most_over_mean < 1.5
    again = compare_routers(a_trace(500), ["affinity", "random"], ["vtc"], [4], SERVER, STEP_TIME)
    assert again == list(found.values())


def test_shares_hold_over_all_engines_with_shared_counters():
    weights = {"heavy": 4.0, "light": 1.0}
    trace = a_trace(3000, rate=800.0, clients=("heavy", "light"), seed=2)
    small = ServerSettings("smaller", 2_000, 16, 8, 256, False)
    requests = requests_of(trace, 1024, True)
    done = simulate_fleet(
        requests, 4, create_router("affinity"), shared_policies(weights), small, STEP_TIME, max_model_len=1200, until_s=6.0
    )
    found = service_by_weight(done, weights, WeightedTokens(), 2.0, 6.0)
    assert found[4.0] / found[1.0] == pytest.approx(1.0, abs=0.08)


def test_the_command_line(tmp_path, capsys):
    trace = tmp_path / "trace.csv"
    rows = "".join(f"{i / 10},{'ab'[i % 2]},20,5,x{i % 7}\n" for i in range(60))
    trace.write_text("arrival_s,client,input_len,output_len,adapter\n" + rows)
    arguments = ["replay", str(trace), "--replicas", "2,3", "--router", "affinity,random", "--policy", "vtc-shared"]
    assert main([*arguments, "--server", "chunked", "--json", str(tmp_path / "out.json")]) == 0
    assert "affinity" in capsys.readouterr().out
    document = json.loads((tmp_path / "out.json").read_text())
    assert [(run["num_replicas"], run["router"]) for run in document["runs"]] == [
        (2, "affinity"),
        (2, "random"),
        (3, "affinity"),
        (3, "random"),
    ]
    assert all(run["num_requests"] == 60 for run in document["runs"])
    for wrong in (["--replicas", "0"], ["--replicas", "2", "--router", "near"], ["--replicas", "2", "--html", "x.html"]):
        assert main(["replay", str(trace), *wrong]) == 1
    with pytest.raises(ConfigError):
        compare_routers(a_trace(5), ["random"], ["vtc"], [1], ServerSettings("tiny", 16, 16, 4, 16, False), STEP_TIME)
