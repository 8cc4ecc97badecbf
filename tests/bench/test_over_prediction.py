"""Who makes a predictor expect too much must not keep others waiting: the run in which one did, on the simulated server."""

from __future__ import annotations

import numpy as np
import pytest

from evenflow.bench.replay.profiles import load_profile
from evenflow.bench.replay.replay import Replay, replay
from evenflow.bench.replay.trace import Trace
from evenflow.fairness.measures.fairness_measures import Accounts, Windows, accumulated_difference, bound_2u

PROFILE = load_profile("a10g-llama-7b")
PREDICTING = ["vtc-predict", "vtc-predict:ewma", "vtc-predict:quantile", "vtc-preempt", "hierarchy", "vtc-adapter"]


def a_trace(bursts: list[tuple[float, str, int, int, int]]) -> Trace:
    """Of (arrival, client, prompt tokens, output tokens, how many)."""
    rows = sorted((at, client, prompt, output) for at, client, prompt, output, count in bursts for _ in range(count))
    clients = tuple(dict.fromkeys(client for _, client, _, _ in rows))
    times, names, prompts, outputs = zip(*rows, strict=True)
    return Trace(
        "over-prediction",
        clients,
        np.array(times),
        np.array([clients.index(name) for name in names]),
        np.array(prompts),
        np.array(outputs),
    )


def late_waits(done: Replay) -> list[float]:
    return [r.first_token_s - r.arrival_s for r in done.log.requests if r.client_id == "late" and r.first_token_s is not None]


@pytest.mark.parametrize("server", ["paper", "chunked"])
@pytest.mark.parametrize("policy", ["vtc", *PREDICTING])
def test_long_answers_first_and_short_ones_then(policy: str, server: str) -> None:
    """It was 315,556 where 2 U is 40,000, and 230 s to the late client's first token."""
    trace = a_trace(
        [(0.0, "early", 16, 1000, 5), (100.0, "early", 8, 2, 300), (100.0, "early", 256, 256, 60), (100.3, "late", 64, 64, 100)]
    )
    done = replay(trace, policy, PROFILE.server(server), PROFILE.step_time)
    bound = bound_2u(done.log)
    assert bound is not None
    assert accumulated_difference(Accounts(done.log, "token"), Windows(600.0)) <= bound / 2
    assert min(late_waits(done)) < 2.0
