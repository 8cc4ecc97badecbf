"""Workloads have the rates, lengths, windows and durations they claim; the same seed gives the same trace."""

import numpy as np
import pytest

from evenflow.base.errors import RegistryError
from evenflow.bench.replay.arrivals import Rate, burst, constant, on_off, phases, ramp
from evenflow.bench.replay.workload import WORKLOADS, make_workload, zipf_clients

RNG = np.random.default_rng(7)


def per_client(trace, client):
    return trace.arrival_s[trace.client_index == trace.clients.index(client)]


@pytest.mark.parametrize("name", sorted(set(WORKLOADS) - {"zipf_100k"}))
def test_every_workload_is_a_sound_trace_and_repeats_from_its_seed(name):
    first, again, other = make_workload(name, 3), make_workload(name, 3), make_workload(name, 4)
    assert first.name == name
    assert first.description
    assert first.arrival_s.tolist() == again.arrival_s.tolist()
    assert first.client_index.tolist() == again.client_index.tolist()
    assert first.arrival_s.tolist() != other.arrival_s.tolist()
    assert (np.diff(first.arrival_s) >= 0).all()
    assert first.arrival_s[0] >= 0
    assert min(first.input_len.min(), first.output_len.min()) >= 1
    assert len(list(first)) == len(first) > 100
    assert first.horizon_s in (300.0, 360.0, 600.0, 900.0, 1000.0)


@pytest.mark.parametrize(
    ("name", "counts", "lengths"),
    [
        ("overload", [540, 1080], (256, 256)),
        ("overload_multi", [144] * 3 + [216] * 5, (256, 256)),
        ("overload_weighted", [288, 288, 432, 576], (256, 256)),
        ("proportional", [150, 300, 900], (256, 256)),
        ("on_off_less", [150, 1200], (256, 256)),
        ("on_off_overload", [600, 1800], (256, 256)),
        ("increase", [300, 660], (256, 256)),
        ("dist_shift", [90 + 300 + 150, 600 + 300 + 450], (256, 256)),
        ("overload_s4_768_pool65000", [900, 1800], (768, 768)),
        ("weighted_equal_demand", [432] * 4, (256, 256)),
        ("burst_after_idle", [700, 400], (256, 256)),
    ],
)
def test_even_workloads_have_the_tabulated_numbers_of_requests(name, counts, lengths):
    trace = make_workload(name, 11)
    found = [len(per_client(trace, c)) for c in trace.clients]
    assert found == pytest.approx(counts, abs=3)
    assert set(zip(trace.input_len.tolist(), trace.output_len.tolist(), strict=True)) == {lengths}


def test_poisson_workloads():
    trace = make_workload("poisson_short_long", 5)
    short, long = per_client(trace, "0"), per_client(trace, "1")
    assert len(short) == pytest.approx(4800, abs=5 * 4800**0.5)
    assert len(long) == pytest.approx(900, abs=5 * 900**0.5)
    gaps = np.diff(short)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.06)
    assert set(trace.input_len[trace.client_index == 0].tolist()) == {64}
    second = make_workload("poisson_short_long_2", 5)
    assert {(r.client, r.input_len, r.output_len) for r in second} == {("0", 512, 32), ("1", 32, 512)}
    spread = make_workload("poisson_on_off_overload", 5)
    assert (spread.input_len.min(), spread.input_len.max()) == (16, 511)


def test_on_off_is_silent_in_odd_minutes():
    for name in ("on_off_less", "on_off_overload", "poisson_on_off_overload"):
        trace = make_workload(name, 2)
        assert set((per_client(trace, "0") // 60 % 2).tolist()) == {0.0}
        assert set((per_client(trace, "1") // 60 % 2).tolist()) == {0.0, 1.0}
    shifted = per_client(make_workload("dist_shift", 2), "0")
    assert set((shifted[shifted < 300] // 60 % 2).tolist()) == {0.0}


def test_burst_after_idle_and_weights():
    trace = make_workload("burst_after_idle", 1)
    assert per_client(trace, "1") == pytest.approx(np.full(400, 600.0), abs=2e-3)
    assert make_workload("weighted_equal_demand").weight_by_client == {"1": 2.0, "2": 3.0, "3": 4.0}


def test_adapters_are_skewed_and_owned_by_one_client():
    trace = make_workload("adapter_skewed", 1)
    rows = list(trace)
    assert {r.adapter for r in rows if r.client == "1"} == {"1-0"}
    scattered = [r.adapter for r in rows if r.client == "0"]
    assert all(a.startswith("0-") for a in scattered)
    assert len(set(scattered)) > 100
    assert scattered.count("0-0") > 5 * scattered.count("0-30")


def test_zipf():
    trace = zipf_clients(1, num_clients=1000, num_requests=20_000)
    counts = np.bincount(trace.client_index, minlength=1000)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.3)
    assert len(trace) == 20_000


def test_unknown_workload_lists_the_known():
    with pytest.raises(RegistryError, match="overload_multi"):
        make_workload("nope")


@pytest.mark.parametrize("is_poisson", [False, True])
def test_a_rate_gives_its_integral(is_poisson):
    rate = phases(ramp(0.0, 4.0, 100.0), Rate(((100.0, 0.0), (150.0, 0.0))), constant(2.0, 250.0, 150.0))
    times = rate.arrivals(RNG, is_poisson=is_poisson)
    tolerance = 1 if not is_poisson else 90
    assert len(times) == pytest.approx(400, abs=tolerance)
    assert (np.diff(times) >= 0).all()
    # the ramp 4 t / 100 has had t^2 / 50 requests by t
    assert (times < 50).sum() == pytest.approx(50, abs=tolerance / 2 + 1)
    assert not ((times > 100.0001) & (times < 150)).any()
    assert len(burst(3.0, 7).arrivals(RNG, is_poisson=False)) == 7
    assert len(on_off(1.0, 180.0).arrivals(RNG, is_poisson=False)) == pytest.approx(120, abs=1)
