"""The fits find the factors of a server that has them, and say how far off they are of one that has not."""

import math

import pytest

from evenflow.bench.profiles import ServerSettings, load_profile
from evenflow.bench.profiling import Point, fit_cost, fit_steps, measure, profile_toml
from evenflow.fairness.cost import ProfiledQuadratic

TRUE_COST = ProfiledQuadratic(0.2, 0.1, 0.004, 0.003, 1.1)


class LinearServer:
    """Steps of known times; every run of a shape takes a little longer than the one before."""

    def __init__(self) -> None:
        self.num_runs = 0

    def run(self, num_requests, input_tokens, output_tokens):
        self.num_runs += 1
        context = num_requests * (input_tokens + output_tokens / 2)
        step_s = 0.02 + 0.0002 * num_requests + 1e-6 * context
        return 0.03 + 0.0002 * num_requests * input_tokens, step_s * (output_tokens - 1)


def test_the_step_times_of_a_linear_server_are_found():
    server, told = LinearServer(), []
    points = measure(server, [1, 4, 16], [16, 64], [1, 8, 32], repeats=2, progress=lambda *done: told.append(done))
    assert server.num_runs == 1 + 18 * 2
    assert told[-1] == (18, 18)
    profile, fit = fit_steps(points)
    assert profile.decode_base_s == pytest.approx(0.02, rel=1e-6)
    assert profile.decode_sequence_s == pytest.approx(0.0002, rel=1e-5)
    assert profile.context_token_s == pytest.approx(1e-6, rel=1e-4)
    assert profile.prefill_base_s == pytest.approx(0.03, rel=1e-6)
    assert profile.prefill_token_s == pytest.approx(0.0002, rel=1e-5)
    assert fit.worst_relative < 1e-9
    assert fit.num_points == 12


def quadratic_points(noise=0.0):
    shapes = [(x, y) for x in (16, 64, 256) for y in (8, 64, 256)]
    return [Point(8, x, y, 0.0, TRUE_COST(x, y) / 1e3 * (1 + noise * (-1) ** i)) for i, (x, y) in enumerate(shapes)] + [
        Point(1, 16, 8, 99.0, 99.0)
    ]


def test_the_quadratic_is_found_from_full_batches_only():
    cost, fit = fit_cost(quadratic_points())
    for name in ("input_ms", "output_ms", "product_ms", "output_squared_ms", "constant_ms"):
        assert getattr(cost, name) == pytest.approx(getattr(TRUE_COST, name), rel=1e-6)
    assert fit.num_points == 9
    assert fit.rmse_ms < 1e-6


def test_the_error_of_a_fit_is_told_and_prices_never_fall():
    cost, fit = fit_cost(quadratic_points(noise=0.1))
    assert 0.02 < fit.worst_relative < 0.2
    assert fit.rmse_ms > 1
    falling = [Point(2, x, y, 0.0, (100 - 0.2 * x + y) / 1e3) for x in (10, 100, 200) for y in (1, 20, 40)]
    cost, _ = fit_cost(falling)
    for x in (1, 100):
        for y in (1, 100):
            assert cost(x + 1, y) >= cost(x, y)
            assert cost(x, y + 1) >= cost(x, y)
    assert math.isfinite(cost(10, 10))


def test_a_written_profile_can_be_replayed(tmp_path):
    steps, _ = fit_steps(measure(LinearServer(), [1, 4], [16, 64], [2, 8], repeats=1))
    server = ServerSettings("chunked", 4096, 16, 4, 64, is_exclusive=False)
    path = tmp_path / "mine.toml"
    path.write_text(profile_toml(steps, server, TRUE_COST, "a server\nof two lines"))
    profile = load_profile(str(path))
    assert profile.step_time.decode_base_s == pytest.approx(steps.decode_base_s, rel=1e-4)
    assert profile.server() == profile.server("chunked") == server
    assert profile.cost == TRUE_COST
    assert load_profile("a10g-llama-7b").server().name == "paper"
