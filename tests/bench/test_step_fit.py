"""Step times are found from request times, also where prompts of one batch are spread over steps that decode others."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenflow.bench.profile.profiling import Point
from evenflow.bench.profile.step_fit import errors, fit_steps, non_negative
from evenflow.bench.replay.profiles import ServerSettings, StepTimeProfile
from evenflow.fairness import ClientQueues, create_policy
from evenflow.serving.core.request import ClientId, Request, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.engine.simulated import simulate

SERVER = ServerSettings("chunked", 65536, 16, 16, 128, is_exclusive=False)
TRUE = StepTimeProfile(0.02, 0.0005, 2e-6, 0.03, 0.0008, adapter_bytes=0, factor=1.0)
SHAPES = [(b, x, y) for b in (1, 4, 16) for x in (16, 64, 200) for y in (1, 8, 32)]


def served(step_time, shape, server=SERVER):
    """What `evenflow profile` would measure of a server with these step times."""
    num_requests, input_tokens, output_tokens = shape
    queues = ClientQueues()
    scheduler = server.scheduler(create_policy("fcfs", queues=queues, weights={}), queues, max_model_len=1024)
    requests = [
        Request(RequestId(str(i)), ClientId("c"), [0] * input_tokens, GREEDY, 0.0, max_output_tokens=output_tokens)
        for i in range(num_requests)
    ]
    done = simulate(scheduler, requests, step_time).requests
    prefill_s = np.mean([request.first_token_s - request.admitted_s for request in done])
    decode_s = np.mean([request.finished_s - request.first_token_s for request in done])
    return Point(num_requests, input_tokens, output_tokens, float(prefill_s), float(decode_s))


def test_the_step_times_of_a_chunked_server_are_found_exactly():
    points = [served(TRUE, shape) for shape in SHAPES]
    found, fit = fit_steps(points, SERVER)
    for name in ("decode_base_s", "decode_sequence_s", "context_token_s", "prefill_base_s", "prefill_token_s"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6), name
    assert fit.worst_relative < 1e-6
    assert fit.num_points == 27 + 18


def test_a_fit_for_another_chunk_size_does_not_pass_for_a_good_one():
    points = [served(TRUE, shape) for shape in SHAPES]
    _, fit = fit_steps(points, replace(SERVER, max_batch_tokens=4096))
    assert fit.worst_relative > 0.2


def test_noise_is_told_and_barely_moves_the_factors():
    noise = np.random.default_rng(0).uniform(0.95, 1.05, (len(SHAPES), 2))
    points = [served(TRUE, shape) for shape in SHAPES]
    points = [replace(p, prefill_s=p.prefill_s * a, decode_s=p.decode_s * b) for p, (a, b) in zip(points, noise, strict=True)]
    found, fit = fit_steps(points, SERVER)
    assert 0.01 < fit.median_relative < fit.worst_relative < 0.08
    assert found.prefill_token_s == pytest.approx(TRUE.prefill_token_s, rel=0.1)


@given(st.lists(st.tuples(*[st.floats(0, 10)] * 3, st.floats(0.1, 100)), min_size=3, max_size=8))
def test_factors_are_never_negative_and_no_coordinate_step_improves_them(rows):
    table = np.array(rows)
    columns, values = table[:, :3], table[:, 3]
    factors = np.array(non_negative(columns, values))
    assert (factors >= 0).all()

    def left(f):
        return (((columns @ f - values) / values) ** 2).sum()

    for i in range(3):
        for change in (0.01, -0.01):
            moved = factors.copy()
            moved[i] = max(0.0, moved[i] + change)
            assert left(moved) >= left(factors) - 1e-6


def test_errors_by_hand():
    fit = errors(np.array([1.1, 1.8, 4.0]), np.array([1.0, 2.0, 2.0]))
    assert (fit.num_points, round(fit.median_relative, 9), fit.worst_relative) == (3, 0.1, 1.0)
