"""The fits find the factors of a server that has them, and say how far off they are of one that has not."""

import math

import pytest

from evenflow.bench.profile.profiling import Point, disagreement, fit_cost, measure, profile_toml
from evenflow.bench.profile.step_fit import fit_steps
from evenflow.bench.replay.profiles import ServerSettings, load_profile
from evenflow.fairness.books.cost import ProfiledQuadratic

TRUE_COST = ProfiledQuadratic(0.2, 0.1, 0.004, 0.003, 1.1)


class LinearServer:
    """Steps of known times; all prompts fit one step."""

    def __init__(self) -> None:
        self.runs = []

    def run(self, num_requests, input_tokens, output_tokens):
        self.runs.append((num_requests, input_tokens, output_tokens))
        context = num_requests * (input_tokens + output_tokens / 2)
        step_s = 0.02 + 0.0002 * num_requests + 1e-6 * context
        return 0.03 + 0.0002 * num_requests * input_tokens, step_s * (output_tokens - 1)


def test_a_repeat_goes_through_all_shapes_and_the_median_counts():
    class Drifting(LinearServer):
        def run(self, *shape):
            super().run(*shape)
            return 1.0 + len(self.runs), 10.0

    server, told = Drifting(), []
    points = measure(server, [1, 4], [16, 64], [8], repeats=3, progress=lambda *done: told.append(done))
    assert server.runs[1:5] == server.runs[5:9] == server.runs[9:] == [(1, 16, 8), (1, 64, 8), (4, 16, 8), (4, 64, 8)]
    assert told[-1] == (12, 12)
    assert points[0].samples == ((3.0, 10.0), (7.0, 10.0), (11.0, 10.0))
    assert points[0].prefill_s == 7.0
    # prefill samples are 4 / median off, two of three; decode samples never
    assert disagreement(points) == 0.0
    assert disagreement([Point(1, 1, 1, 4.0, 0.0, ((4.0, 0.0), (3.0, 0.0), (5.0, 0.0)))]) == pytest.approx(0.25)


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
    server = ServerSettings("chunked", 4096, 16, 4, 512, is_exclusive=False)
    steps, _ = fit_steps(measure(LinearServer(), [1, 4], [16, 64], [2, 8], repeats=1), server)
    path = tmp_path / "mine.toml"
    path.write_text(profile_toml(steps, server, TRUE_COST, "a server\nof two lines"))
    profile = load_profile(str(path))
    assert profile.step_time.decode_base_s == pytest.approx(steps.decode_base_s, rel=1e-4)
    assert profile.server() == profile.server("chunked") == server
    assert profile.cost == TRUE_COST
    assert load_profile("a10g-llama-7b").server().name == "paper"
