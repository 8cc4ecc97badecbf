"""The replay's books: every token in the measures exactly once, the same run from the same seed, in both server settings."""

import json
from dataclasses import replace

import pytest

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.base.version import __version__
from evenflow.bench.replay.arrivals import constant
from evenflow.bench.replay.clients_file import read_clients
from evenflow.bench.replay.comparison import compare, to_json, write_json
from evenflow.bench.replay.fairness_page import comparison_table, fairness_page, quality_table, write_pngs
from evenflow.bench.replay.profiles import StepTimeProfile, load_profile
from evenflow.bench.replay.replay import replay
from evenflow.bench.replay.slora_workload import slora_workload
from evenflow.bench.replay.workload import ClientLoad, generate, make_workload, zipf_clients
from evenflow.cli.main import main
from evenflow.fairness import policy_registry
from evenflow.fairness.books.cost import ProfiledQuadratic
from evenflow.fairness.measures.fairness_measures import MEASURES, Windows, measure_run
from evenflow.serving.core.plan import NO_ADAPTER_SLOT, AdapterLoad, PlannedSequence, StepPlan
from evenflow.serving.core.request import AdapterDigest

PROFILE = load_profile("a10g-llama-7b")


def a_trace(seed=0, adapters=0):
    loads = [ClientLoad(constant(rate, 40.0), (1, 200), (1, 120), num_adapters=adapters) for rate in (0.5, 1.5, 3.0)]
    return generate("small", loads, seed, is_poisson=True, horizon_s=40.0)


@pytest.mark.parametrize("server", ["paper", "chunked"])
@pytest.mark.parametrize("policy", sorted(set(policy_registry()) - {"vtc-shared"}))
def test_every_token_is_measured_once(server, policy):
    trace = a_trace(adapters=3)
    done = replay(trace, policy, PROFILE.server(server), PROFILE.step_time)
    for measure in MEASURES:
        fairness = measure_run(done.log, measure, Windows(trace.horizon_s))
        assert fairness.served + fairness.rejected == len(trace)
        for client, account in fairness.per_client.items():
            mine = [r for r in done.log.requests if r.client_id == client and not r.is_rejected]
            assert account.service == pytest.approx(sum(r.input_tokens + 2 * r.output_tokens for r in mine))
        assert sum(a.share for a in fairness.per_client.values()) == pytest.approx(1)
    for record in done.log.requests:
        if not record.is_rejected:
            assert record.arrival_s <= record.admitted_s < record.first_token_s <= record.finished_s <= done.log.total_s
            assert record.output_tokens == record.wanted_output_tokens


def test_another_cost_is_measured_in_its_own_unit():
    trace, cost = a_trace(), ProfiledQuadratic()
    done = replay(trace, "vtc-predict", PROFILE.server("chunked"), PROFILE.step_time, cost=cost)
    for measure in MEASURES:
        found = measure_run(done.log, measure, Windows(40.0)).per_client
        total = sum(cost(r.input_tokens, r.output_tokens) for r in done.log.requests)
        assert sum(a.service for a in found.values()) == pytest.approx(total)
        assert sum(a.demand for a in found.values()) == pytest.approx(total)


def test_the_same_seed_gives_the_same_run():
    results = [
        to_json(
            compare(
                a_trace, ["vtc-oracle:0.5", "rpm:5"], PROFILE.name, PROFILE.server("paper"), PROFILE.step_time, seeds=[3, 4]
            )
        )
        for _ in range(2)
    ]
    assert results[0] == results[1]
    runs = results[0]["runs"]
    assert [(r["policy"], r["seed"], r["measure"]) for r in runs[:3]] == [
        ("vtc-oracle:0.5", 3, "paper"),
        ("vtc-oracle:0.5", 3, "token"),
        ("vtc-oracle:0.5", 4, "paper"),
    ]
    assert runs[0]["throughput_tok_s"] != runs[2]["throughput_tok_s"]


def test_json_and_page(tmp_path):
    comparison = compare(a_trace, ["fcfs", "vtc"], PROFILE.name, PROFILE.server("paper"), PROFILE.step_time)
    write_json(comparison, tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["workload"], written["profile"], written["evenflow"]) == (comparison.trace.name, PROFILE.name, __version__)
    assert written["server"]["name"] == "paper"
    runs = written["runs"]
    assert list(runs[0]) == [
        *("policy", "seed", "measure", "max_diff", "avg_diff", "diff_var", "throughput_tok_s", "total_s", "served", "rejected"),
        *("jain", "accumulated_diff_max", "bound_2u", "ttft_mean_s", "ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "per_client"),
    ]
    assert set(runs[0]["per_client"]) == {"0", "1", "2"}
    assert set(runs[0]["per_client"]["0"]) == {"service", "demand", "share", "ttft_mean_s"}
    headers, rows = comparison_table(comparison, "paper")
    assert len(rows) == 2
    assert rows[0][headers.index("tok/s")] == pytest.approx(runs[0]["throughput_tok_s"])
    html = fairness_page(comparison).html()
    assert html.count("<svg") == 6
    assert "Measure paper" in html
    assert len(write_pngs(comparison, tmp_path / "png")) == 6
    with pytest.raises(ConfigError, match="cannot make the folder"):
        write_pngs(comparison, tmp_path / "out.json")


def overload(seed=0):
    return slora_workload(8, rate=6.0, duration_s=60.0, seed=seed)


def test_shedding_in_a_replay_and_its_quality(tmp_path):
    """Three times what the server can do: without shedding hardly anybody is answered in time, with it a third is."""
    server = PROFILE.server("chunked")
    by_shed = {}
    for shed in ("none", "paper", "predict"):
        comparison = compare(overload, ["fcfs", "vtc"], PROFILE.name, server, PROFILE.step_time, shed=shed)
        found = to_json(comparison)["quality"]
        assert [(q["policy"], q["seed"], q["shed"], q["slo_ttft_s"]) for q in found] == [
            ("fcfs", 0, shed, 6.0),
            ("vtc", 0, shed, 6.0),
        ]
        for quality, run in zip(found, comparison.runs, strict=True):
            assert quality["num_completed"] + quality["num_shed"] == quality["num_requests"] == 360
            assert (quality["num_shed"] > 0) == (shed != "none")
            assert run.by_measure["token"].served == quality["num_completed"]
            assert run.by_measure["token"].rejected == quality["num_shed"]
            assert run.by_measure["token"].ttft_mean_s == pytest.approx(quality["ttft_mean_s"])
        by_shed[shed] = found[0]["slo_attainment"]
    assert by_shed["paper"] > by_shed["none"] + 0.1
    assert by_shed["predict"] > by_shed["none"] + 0.1
    headers, rows = quality_table(comparison)
    assert rows[0][headers.index("attainment")] == pytest.approx(found[0]["slo_attainment"])
    html = fairness_page(comparison).html()
    assert "How quickly it answered" in html
    assert "shedding <code>predict</code>" in html or "shedding `predict`" in html


def test_the_command_sheds_and_says_so(tmp_path, capsys):
    arguments = ["replay", "--workload", "slora:n=4,rate=8,duration=20", "--policy", "cluster:2+vtc", "--server", "chunked"]
    assert main([*arguments, "--shed", "predict:1.1", "--slo-ttft", "3", "--json", str(tmp_path / "out.json")]) == 0
    (quality,) = json.loads((tmp_path / "out.json").read_text())["quality"]
    assert (quality["policy"], quality["shed"], quality["slo_ttft_s"]) == ("cluster:2+vtc", "predict:1.1", 3.0)
    assert quality["num_shed"] > 0
    assert "first token within 3 s" in capsys.readouterr().out
    for wrong, message in [
        (["--shed", "late"], "known: none, paper, predict"),
        (["--slo-ttft", "-1"], "--slo-ttft is -1"),
        (["--shed", "paper:7"], "below the SLO of 6 s"),
    ]:
        assert main([*arguments, *wrong, "--quiet"]) != 0
        assert message in capsys.readouterr().err


def test_a_page_of_one_policy_and_of_many_clients():
    make = lambda seed: zipf_clients(seed, num_clients=300, num_requests=300, end_s=60.0)  # noqa: E731
    comparison = compare(make, ["vtc"], PROFILE.name, PROFILE.server("chunked"), PROFILE.step_time)
    html = fairness_page(comparison).html()
    assert html.startswith("<!doctype html>")
    assert "more</td>" in html


def test_adapters_are_loaded_in_our_settings_only():
    trace = make_workload("adapter_skewed")
    short = generate("s", [ClientLoad(constant(2.0, 20.0), (8, 8), (8, 8), num_adapters=5)], 1, horizon_s=20.0)
    assert trace.adapters
    assert replay(short, "vtc", PROFILE.server("paper"), PROFILE.step_time).num_adapter_loads == 0
    assert replay(short, "vtc", PROFILE.server("chunked"), PROFILE.step_time).num_adapter_loads == 5


def sequence(tokens, start):
    return PlannedSequence("r", [0] * tokens, start, [0], NO_ADAPTER_SLOT, None)


def test_step_times_are_the_published_fit():
    profile = StepTimeProfile(factor=1.0)
    decode = StepPlan(1, tuple(sequence(1, 399) for _ in range(10)))
    assert profile(decode) == pytest.approx(20.3e-3 + 10 * 0.212e-3 + 10 * 399 * 1.58e-6)
    assert profile(StepPlan(1, (sequence(1000, 0),))) == pytest.approx(35.8e-3 + 0.213)
    assert profile(StepPlan(1, (sequence(1, 0),))) == pytest.approx(35.8e-3 + 0.213e-3)
    mixed = StepPlan(1, (sequence(1, 399), sequence(100, 256)))
    assert profile(mixed) == pytest.approx(35.8e-3 + 0.212e-3 + 399 * 1.58e-6 + 0.0213)
    assert StepTimeProfile()(mixed) == pytest.approx(1.075 * profile(mixed))
    loads = (AdapterLoad(AdapterDigest("a"), 0, [1, 2], 0, 1), AdapterLoad(AdapterDigest("b"), 1, [3]))
    with_adapters = StepPlan(1, (*mixed.sequences, replace(sequence(1, 399), adapter_slot=1)), loads)
    without = StepPlan(1, (*mixed.sequences, sequence(1, 399)))
    added = StepTimeProfile()(with_adapters) - StepTimeProfile()(without)
    assert added == pytest.approx(1.5 * 16 * 2**20 / 12e9 + 16 * 2**20 / 600e9)


def test_profiles_from_files_and_what_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "[step_time]\nfactor = 1.0\n[servers.ours]\npool_tokens = 4096\npage_tokens = 16\nmax_num_seqs = 8\n"
        "max_batch_tokens = 64\nis_exclusive = false\n"
    )
    profile = load_profile(str(path))
    assert profile.server("ours").pool_tokens == 4096
    assert replay(a_trace(), "vtc", profile.server("ours"), profile.step_time).log.total_s > 0
    with pytest.raises(RegistryError, match="known: ours"):
        profile.server("paper")
    with pytest.raises(RegistryError, match=r"a10g-llama-7b, or a \.toml"):
        load_profile("h100")
    with pytest.raises(ConfigError, match="No such file"):
        load_profile(str(tmp_path / "none.toml"))
    for text, message in [
        ("x = [", r"mine\.toml"),
        ("", "needs at least one table"),
        ("[servers.a]\npool_tokens = -1", "pool_tokens is -1"),
        ("[servers.a]\nwings = 2", "has the fields"),
        ("[servers.a]\npool_tokens = 100", "missing"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_profile(str(path))
    with pytest.raises(ConfigError, match="64 and more"):
        PROFILE.server("paper", 10)
    assert PROFILE.server("paper", 35_000).max_batch_tokens == 5833
    with pytest.raises(ConfigError, match="factor is nan"):
        PROFILE.with_factor(float("nan"))


def test_a_request_that_can_never_fit_is_refused():
    long = generate("long", [ClientLoad(constant(1.0, 3.0), (9000, 9000), (2000, 2000))], 0, horizon_s=3.0)
    with pytest.raises(ConfigError, match="11000 tokens; the pool holds 10000"):
        replay(long, "vtc", PROFILE.server("paper"), PROFILE.step_time)


def test_clients_file(tmp_path):
    path = tmp_path / "clients.toml"
    path.write_text(
        '[tiers.gold]\nweight = 4\n[clients.0]\nweight = 2\ntier = "gold"\napi_keys = ["sha256:x"]\n[clients.1]\nweight = 0.5\n'
    )
    shares = read_clients(path)
    assert shares.weight_by_client == {"0": 2.0, "1": 0.5}
    assert (shares.tier_by_client, shares.weight_by_tier) == ({"0": "gold"}, {"gold": 4.0})
    for text, message in [
        ("[clients.a]\nweight = 0", r"clients\.a\.weight is 0"),
        ("[clients.a]\nweight = -1", "weight is -1"),
        ("[clients.a]\nweight = inf", "weight is inf"),
        ("[clients.a]\nweight = true", "weight is True"),
        ('[clients.a]\ntier = "x"', "known tiers: none"),
        ("[tiers.a]\nweight = nan", r"tiers\.a\.weight is nan"),
        ("clients = 3", "must be tables"),
        ("[", r"clients\.toml"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_clients(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_clients(tmp_path / "none.toml")
