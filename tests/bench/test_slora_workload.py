"""S-LoRA's generator draw for draw, the process of the paper's text in distribution, its settings and suites as tabulated."""

import hashlib

import numpy as np
import pytest

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.bench.replay.slora_settings import SETTINGS, setting
from evenflow.bench.replay.slora_suites import SUITES, suite
from evenflow.bench.replay.slora_workload import popularity, slora_workload
from evenflow.bench.replay.workload import make_workload


def digest(trace):
    """Of the rows, times to the microsecond: the last bits of a logarithm are the C library's."""
    index = trace.adapter_index if trace.adapter_index is not None else np.zeros(len(trace), int)
    columns = (index, trace.input_len, trace.output_len, np.rint(trace.arrival_s * 1e6))
    return hashlib.sha256(np.stack([c.astype("<i8") for c in columns]).tobytes()).hexdigest()[:16]


def test_the_first_rows_and_the_hash_of_the_papers_default():
    trace = slora_workload()
    rows = [(r.adapter, r.input_len, r.output_len, round(r.arrival_s, 6)) for r in list(trace)[:4]]
    assert rows == [
        ("adapter-74", 12, 410, 0.159846),
        ("adapter-190", 473, 43, 3.08561),
        ("adapter-146", 99, 292, 3.363331),
        ("adapter-119", 177, 195, 3.663512),
    ]
    assert len(trace) == 600
    assert digest(trace) == "b48ebf5237ab4945"
    assert digest(slora_workload(32, alpha=0.3, cv=8, duration_s=120)) == "f14e63df03fa5072"
    assert digest(slora_workload(0, rate=6)) == "ffef7a4182e379e1"


@pytest.mark.parametrize(
    ("num_adapters", "alpha", "cv", "rate"), [(200, 1.0, 1.0, 2.0), (32, 0.1, 8.0, 2.0), (5, 4.0, 2.0, 10.0)]
)
def test_merged_is_the_described_order_of_draws(num_adapters, alpha, cv, rate):
    """Written out once more, with the global generator that the paper's program used."""
    state = np.random.get_state()
    try:
        np.random.seed(42)
        total = int(rate * 90)
        adapter = (np.random.power(alpha, total) * num_adapters).astype(int)
        input_len = np.random.randint(8, 512, total)
        output_len = np.random.randint(8, 512, total)
        times = np.cumsum(np.random.gamma(shape=1 / cv**2, scale=cv**2 / rate, size=total))
    finally:
        np.random.set_state(state)
    trace = slora_workload(num_adapters, rate=rate, alpha=alpha, cv=cv, duration_s=90)
    assert trace.adapter_index.tolist() == adapter.tolist()
    assert trace.input_len.tolist() == input_len.tolist()
    assert trace.output_len.tolist() == output_len.tolist()
    assert trace.arrival_s.tolist() == times.tolist()


def test_hottest_adapter_of_200_by_alpha():
    shares = {alpha: float(popularity(200, alpha).max()) for alpha in (0.1, 0.3, 0.6, 1.0)}
    assert shares == pytest.approx({0.1: 0.589, 0.3: 0.204, 0.6: 0.042, 1.0: 0.005}, abs=6e-4)
    drawn = slora_workload(200, rate=200, alpha=0.3)
    assert np.bincount(drawn.adapter_index)[0] / len(drawn) == pytest.approx(0.204, abs=0.01)


def test_per_adapter_processes_have_the_rates_and_the_burstiness():
    for cv in (1.0, 4.0):
        traces = [
            slora_workload(20, rate=4, cv=cv, alpha=0.6, duration_s=400, seed=s, arrivals="per-adapter") for s in range(30)
        ]
        counts = np.array([np.bincount(t.adapter_index, minlength=20) for t in traces])
        # the variance of a renewal count is about cv^2 times its mean
        mean = counts.sum(axis=1).mean()
        assert mean == pytest.approx(1600, abs=4 * cv * (1600 / 30) ** 0.5)
        assert counts[:, 0].mean() / counts.sum(axis=1).mean() == pytest.approx(popularity(20, 0.6)[0], rel=0.1)
        gaps = np.concatenate([np.diff(t.arrival_s[t.adapter_index == 0]) for t in traces])
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.12)
    trace = traces[0]
    assert (np.diff(trace.arrival_s) >= 0).all()
    assert trace.arrival_s[-1] < 400
    assert (trace.input_len.min(), trace.input_len.max()) == (8, 511)


def test_bursts_of_a_process_of_its_own_stay_with_one_adapter():
    def same_as_before(arrivals):
        index = slora_workload(50, rate=10, cv=6, duration_s=200, arrivals=arrivals).adapter_index
        return float((np.diff(index) == 0).mean())

    assert same_as_before("per-adapter") > 5 * same_as_before("merged")


def test_clients_are_the_adapters_or_one():
    trace = slora_workload(4, rate=5, duration_s=10)
    assert {(r.client, r.adapter) for r in trace} == {(f"adapter-{i}", f"adapter-{i}") for i in range(4)}
    assert {r.client for r in slora_workload(4, rate=5, duration_s=10, client_per_adapter=False)} == {"0"}
    assert {(r.client, r.adapter) for r in slora_workload(0, rate=5, duration_s=10)} == {("0", None)}
    assert next(iter(slora_workload(0, rate=5, duration_s=10, arrivals="per-adapter"))).adapter is None


def test_by_name_with_arguments():
    assert digest(make_workload("slora")) == digest(slora_workload())
    trace = make_workload("slora:n=3,rate=4,alpha=0.3,cv=2,duration=30,arrivals=per-adapter", 1)
    assert digest(trace) == digest(slora_workload(3, rate=4, alpha=0.3, cv=2, duration_s=30, seed=43, arrivals="per-adapter"))
    for argument in ("m=3", "n=x", "rate", "n=2.5"):
        with pytest.raises(ConfigError, match="slora takes n="):
            make_workload(f"slora:{argument}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0.0}, "rate is 0"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"cv": float("nan")}, "cv is nan"),
        ({"duration_s": float("inf")}, "duration_s is inf"),
        ({"rate": 0.01, "duration_s": 10.0}, "no whole request"),
        ({"num_adapters": -1}, "num_adapters is -1"),
        ({"input_range": (8, 8)}, r"input_range is \(8, 8\)"),
        ({"output_range": (0, 8)}, r"output_range is \(0, 8\)"),
        ({"arrivals": "poisson"}, "allowed: merged, per-adapter"),
        ({"num_adapters": 2, "adapter_names": ["a"]}, "1 adapter names for 2"),
    ],
)
def test_what_is_out_of_range_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        slora_workload(**arguments)


def test_settings():
    assert {name: s.lora_ranks for name, s in SETTINGS.items()} == {
        "S1": (8,), "S2": (64, 32, 16, 8), "S4": (64, 32, 16), "S5": (32,), "S6": (64,)
    }  # fmt: skip
    billions = {name: round(s.num_parameters / 1e9, 1) for name, s in SETTINGS.items()}
    assert billions == {"S1": 6.7, "S2": 6.7, "S4": 13.0, "S5": 30.4, "S6": 70.3}
    # rank 8 of a 7B in fp16: 16 MiB (32 KV tokens of 512 KiB)
    assert setting("S1").adapter_elements(8) * 2 == 16 * 2**20
    assert [a.lora_rank for a in setting("S4").adapters(5)] == [64, 32, 16, 64, 32]
    names = [a.name for a in setting("S2").adapters(1500)]
    assert names == sorted(set(names))


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_a_scaled_setting_keeps_the_share_of_its_adapters(name, divisor):
    true, small = setting(name), setting(f"{name}/{divisor}")
    assert small.shape.num_heads * small.shape.head_dim == small.shape.hidden_size
    assert small.shape.num_layers * divisor == true.shape.num_layers
    assert small.shape.intermediate_size * divisor == true.shape.intermediate_size
    assert [r * divisor for r in small.lora_ranks] == list(true.lora_ranks)
    shares = [s.adapter_elements(s.lora_ranks[0]) / s.num_parameters for s in (true, small)]
    # but for the embeddings, which scale with less than the layers do
    assert 0.5 < shares[1] / shares[0] <= 1


def test_unknown_settings_and_suites_list_the_known():
    with pytest.raises(RegistryError, match="known: S1, S2, S4, S5, S6"):
        setting("S3")
    with pytest.raises(ConfigError, match="allowed: 2, 4, 8"):
        setting("S2/3")
    with pytest.raises(RegistryError, match="a100-80-table"):
        suite("a100")


def test_suites_are_as_tabulated():
    table = suite("a100-80-table")
    assert [(p.num_adapters, p.rate, p.duration_s) for p in table.points] == [(n, 10, 120) for n in (2, 5, 100, 1000, 2000)]
    assert [p.alpha for p in suite("a10g-alpha").points] == [0.1, 0.3, 0.6, 1.0]
    assert [p.cv for p in suite("a100-80-S4-cv").points] == [1, 2, 4, 6, 8]
    assert [p.rate for p in suite("a100-80-S4-req-rate").points] == [1, 2, 4, 6, 8]
    assert {p.num_adapters for p in suite("ablation-cluster").points} == {32}
    for entry in SUITES.values():
        along = [getattr(p, entry.axis) for p in entry.points]
        assert along == sorted(set(along)), entry.name
        assert set(entry.settings) <= set(SETTINGS)


def test_a_point_makes_its_workload_also_scaled():
    point = suite("a10g-num-adapter").points[1]
    trace = point.workload(setting("S2"))
    assert digest(trace) == digest(slora_workload(20))
    assert set(trace.adapters) == {a.name for a in setting("S2").adapters(20)}
    small = point.scaled(rate=0.5, duration_s=60, length=0.125)
    assert (small.rate, small.duration_s, small.input_range, small.output_range) == (1.0, 60, (1, 64), (1, 64))
    assert len(small.workload()) == 60
