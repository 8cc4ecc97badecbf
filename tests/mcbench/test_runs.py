"""Runs, suites and the command line: results hold what they promise, suites resume, failures keep what there is."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evenflow.base.errors import ConfigError, RegistryError, WireError
from evenflow.cli import mcbench as command
from evenflow.cli.mcbench_output import say_indented
from evenflow.cli.mcbench_predictions import _range
from evenflow.cli.mcbench_runs import _base_of_suite
from evenflow.comm.catalogue import COMPRESSORS, SUMMARIES, TRANSPORTS
from evenflow.comm.collectives.links import Link
from evenflow.comm.compressor import GradientRule
from evenflow.comm.transport import SUMS
from evenflow.mcbench.names import GLUE_TASKS, GRADIENT_RULES, LAYER_NAMES, SCHEDULES
from evenflow.mcbench.predict import break_even as break_even_module
from evenflow.mcbench.runs.launch import RanksFailed, cores_of_ranks, launch
from evenflow.mcbench.runs.run import run, summarise
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.split.pipeline import SCHEDULES as pipeline_schedules
from evenflow.mcbench.split.rules import select_layers
from evenflow.mcbench.suites import suite as suite_module
from evenflow.mcbench.suites.report_page import accuracy_rows, results_page
from evenflow.mcbench.suites.study_sections import judged_by, prediction_errors
from evenflow.mcbench.suites.suite import SuiteRun, read_results, run_suite, suite
from evenflow.mcbench.suites.time_tables import time_rows
from evenflow.mcbench.tasks.file_tasks import GLUE
from evenflow.mcbench.tasks.load import load_task

SMALL = {"emulate": True, "seeds": 2, "steps": 3, "batch": 8, "hidden": 32, "num_layers": 2}


def parse(*words: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(dest="command"))
    return parser.parse_args(["mcbench", *words])


def test_an_emulated_run_holds_everything() -> None:
    result = run(RunConfig(tp=2, pp=2, compress="tp=int8-g32/two-shot; pp=topk:0.1", **SMALL))
    assert 0 <= result["accuracy"] <= 1
    assert len(result["accuracy_by_seed"]) == 2
    assert set(result["bytes_per_step"]) == {"tp.forward", "tp.backward", "pp.forward", "pp.backward"}
    for entry in result["bytes_per_step"].values():
        assert entry["planned"] == pytest.approx(entry["counted"])
        assert entry["planned"] > 0
    assert result["parameters"]["compress"].startswith("tp=int8")
    assert result["parity"]["parity"]["output_error"] < 1e-5
    assert result["seeds"] == [0, 1]
    assert result["data"]["is_pinned"]
    assert {"torch", "transformers", "python"} <= set(result["versions"])
    json.dumps(result)


def test_emulated_pipeline_boundaries_count_exactly_their_messages() -> None:
    result = run(RunConfig(pp=2, compress="pp=int8-g32", **{**SMALL, "seeds": 1}))
    micro_batch = 4 * 17 * 32  # 4 of 8 images, 16 patches and a class token, hidden 32
    assert result["bytes_per_step"]["pp.forward"]["planned"] == 2 * micro_batch * (1 + 2 / 32)
    assert "note" in result


def test_aqsgd_uses_fixed_batches_and_learned_boundaries_train() -> None:
    assert RunConfig(pp=2, compress="pp.forward=aqsgd:4").training().fixed_batches
    assert not RunConfig(pp=2, compress="pp=q8").training().fixed_batches
    result = run(RunConfig(pp=2, compress="pp.forward=ae:8", **{**SMALL, "seeds": 1}))
    # The gradient of an auto-encoder's code is as narrow as the code, and travels by autograd.
    assert result["bytes_per_step"]["pp.forward"]["planned"] == 8 * 17 * 8 * 4


def test_fine_tuning_goes_by_epochs_and_at_a_rate_for_trained_models() -> None:
    mrpc = RunConfig(task="glue/mrpc", model="some/folder").training()
    assert mrpc.learning_rate == 5e-5
    assert mrpc.over(3668).num_steps == 5 * 115
    assert RunConfig(task="glue/rte", model="bert-tiny").training().learning_rate == 3e-3
    asked = RunConfig(task="glue/rte", model="some/folder", steps=7, rate=1e-4).training().over(2490)
    assert (asked.num_steps, asked.learning_rate) == (7, 1e-4)
    assert RunConfig(task="digits").training().over(10**6).num_steps == 200


def test_suites_resume_and_note_failures(tmp_path: Path) -> None:
    configs = suite("paper", 1)
    assert len(configs) >= 200
    assert len({config.key() for config in configs}) == len(configs)
    assert {(config.tp, config.pp) for config in configs} >= {(4, 1), (2, 2), (1, 4)}
    calls: list[str] = []

    def fake(config: RunConfig) -> dict[str, Any]:
        calls.append(config.key())
        if len(calls) == 3:
            raise WireError("a rank died")
        return {"metric": "accuracy", "accuracy": 0.5, "wall_s": 0.0, "parameters": config.to_json()}

    first = run_suite(configs[:5], tmp_path, run_one=fake)
    assert (first.done, first.failed) == (4, 1)
    assert [failure["error"] for failure in read_results(tmp_path)[1]] == ["a rank died"]
    second = run_suite(configs[:6], tmp_path, run_one=fake)
    assert (second.done, second.skipped, second.failed) == (2, 4, 0)
    assert len(calls) == 7
    results, failures = read_results(tmp_path)
    assert len(results) == 6
    assert not failures, "what was run again and succeeded is no failure"
    times = iter([0.0, 1.0, 100.0, 200.0])
    budgeted = run_suite(configs[10:20], tmp_path, 50.0, run_one=fake, clock=lambda: next(times))
    assert (budgeted.done, budgeted.left) == (1, 9)
    with pytest.raises(RegistryError, match="known: paper, modern, break-even"):
        suite("everything")
    with pytest.raises(ConfigError, match="holds no results"):
        read_results(tmp_path / "nowhere")


def fails_for_the_second(config: RunConfig) -> dict[str, Any]:
    """For worker processes, which import it."""
    if config.compress.endswith("A2:0.0625"):
        os._exit(1)
    return {"metric": "accuracy", "accuracy": 0.5, "wall_s": 0.0, "parameters": config.to_json(), "process": os.getpid()}


@pytest.mark.slow
def test_several_at_a_time_keep_results_when_a_process_dies(tmp_path: Path) -> None:
    configs = suite("paper", 1)
    dense = [config for config in configs[:40] if config.compress == "none"]
    outcome = run_suite(dense, tmp_path, run_one=fails_for_the_second, jobs=2)
    assert (outcome.done, outcome.left) == (len(dense), 0)
    assert os.getpid() not in {result["process"] for result in read_results(tmp_path)[0]}
    deadly = next(config for config in configs if config.compress.endswith("A2:0.0625"))
    with pytest.raises(WireError, match="was killed"):
        run_suite([*dense, deadly], tmp_path, run_one=fails_for_the_second, jobs=2)
    assert len(read_results(tmp_path)[0]) == len(dense)


@pytest.mark.slow
def test_several_at_a_time_get_the_scores_of_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command, with what it hands to its worker processes."""
    configs = [RunConfig(tp=2, compress=spec, **SMALL) for spec in ("none", "tp=q4", "tp=int8-g32")]
    monkeypatch.setattr(suite_module, "suite", lambda *given: configs)
    for jobs, folder in (("1", tmp_path / "one"), ("2", tmp_path / "two")):
        assert command.run(parse("suite", "paper", "--out", str(folder), "--jobs", jobs)) == 0
    for config in configs:
        one, two = (json.loads((tmp_path / folder / f"{config.key()}.json").read_text()) for folder in ("one", "two"))
        assert one["accuracy_by_seed"] == two["accuracy_by_seed"]
        assert one["bytes_per_step"] == two["bytes_per_step"]


def test_what_a_suite_runs_can_be_sent_to_a_worker() -> None:
    sent = pickle.loads(pickle.dumps(SuiteRun(Path("pretrained"), say_indented)))
    assert sent == SuiteRun(Path("pretrained"), say_indented)
    error = pickle.loads(pickle.dumps(RanksFailed("rank 1 failed: no", {1: "Traceback"})))
    assert (str(error), error.errors_by_rank) == ("rank 1 failed: no", {1: "Traceback"})


def test_scores_do_not_depend_on_how_many_threads_the_process_has() -> None:
    config = RunConfig(tp=2, compress="tp=int4-g32", **{**SMALL, "seeds": 1})
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        result = run(config)
        found.append((result["scores_by_seed"], result["threads"]))
        assert torch.get_num_threads() == threads, "the process keeps its own number"
    torch.set_num_threads(before)
    assert found[0] == found[1]
    assert found[0][1] == 1


def test_what_is_timed_runs_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would time each other"):
        run_suite([RunConfig(tp=2)], tmp_path, jobs=2)


def test_report_pairs_seeds_with_the_dense_run(tmp_path: Path) -> None:
    dense = run(RunConfig(tp=2, **SMALL))
    rough = run(RunConfig(tp=2, compress="tp.forward=q2", **SMALL))
    row = next(row for row in accuracy_rows([dense, rough]) if row[2] == "tp.forward=q2")
    differences = [a - b for a, b in zip(rough["accuracy_by_seed"], dense["accuracy_by_seed"])]
    assert row[5] == pytest.approx(sum(differences) / 2)
    assert 0 < row[9] < 1
    results_page([dense, rough], []).write(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "tp.forward=q2" in text
    assert "Predicted" not in text


def made_result(compress: str, seeds: list[int], diverged: int = 0, **more: Any) -> dict[str, Any]:
    """A result as `run` writes it, in which ``diverged`` further seeds came to nothing."""
    task = load_task("digits")
    scores = {"compressed": {"loss": 1.0, "accuracy": 0.5}, "dense": {"loss": 1.0, "accuracy": 0.5}}
    records: list[dict[str, Any]] = [{"kind": "seed", "value": {"seed": seed, "scores": scores}} for seed in seeds]
    records += [
        {"kind": "diverged", "value": {"seed": 9, "step": 3, "reason": "diverged at step 4: the loss is nan"}}
    ] * diverged
    result = summarise(RunConfig(tp=2, compress=compress, seeds=2), task, records)
    return {**result, "link": {"nominal": "1gbit", "kind": "made up"}, **more}


def test_a_report_shows_what_diverged(tmp_path: Path) -> None:
    results = [made_result("none", [0, 1]), made_result("tp=q2", [0], 1), made_result("tp=q4", [], 2)]
    for number, result in enumerate(results):
        (tmp_path / f"{number}.json").write_text(json.dumps(result))
    assert command.run(parse("report", str(tmp_path), "--html", str(tmp_path / "r.html"))) == 0
    text = (tmp_path / "r.html").read_text()
    assert "tp=q2 (diverged: 1 of 2 seeds)" in text
    assert "tp=q4 (diverged: 2 of 2 seeds)" in text
    assert [row[4] for row in accuracy_rows(results)] == [0.5, 0.5, None], "what has no score comes last"


def test_a_run_that_diverges_is_a_result_and_not_a_crash(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seeds", "1", "--steps", "3", "--batch", "8", "--hidden", "32", "--num-layers", "2", "--rate", "1e30"]
    assert command.run(parse("run", "--emulate", *words)) == 1
    assert "no accuracy: all seeds diverged" in capsys.readouterr().out


def test_a_report_has_the_papers_time_breakdown(tmp_path: Path) -> None:
    def timed(compress: str, total: float, **parts: float) -> dict[str, Any]:
        return made_result(compress, [0], ms_per_iteration={"total": total, "profiled": parts}, achieved_gbit_s=0.9)

    slow = timed("none", 40.0, forward=5.0, backward=9.0, optimizer=1.0, **{"tp communication": 25.0})
    fast = timed("tp=int8-g32", 20.0, forward=5.0, backward=9.0, optimizer=1.0, encode=1.0, decode=1.5)
    headings, rows = time_rows([fast, slow])
    assert headings == ["setting", "forward", "backward", "optimizer", "encode", "decode", "TP comm.", "total", "speed-up"]
    assert [row[0] for row in rows] == ["none", "tp=int8-g32"]
    assert rows[1][-2:] == [20.0, 2.0]
    results_page([slow, fast], []).write(tmp_path / "r.html")
    assert "digits, TP x PP = 2 x 1, 1gbit" in (tmp_path / "r.html").read_text()


def test_a_suite_of_ones_own_task_model_and_link() -> None:
    args = parse("suite", "paper", "--out", "x", "--task", "topics", "--model", "bert-tiny", "--link", "1gbit")
    configs = suite("paper", 1, _base_of_suite(args))
    assert {(c.task, c.model, c.link, c.emulate, c.layers) for c in configs} >= {
        ("topics", "bert-tiny", "1gbit", False, "last-half")
    }
    assert {c.task for c in configs} == {"topics"}
    assert _base_of_suite(parse("suite", "paper", "--out", "x")) is None


def test_command_line_lists_runs_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(parse("list")) == 0
    listed = capsys.readouterr().out
    for word in ("int8-g32", "paper:A1", "two-shot", "tp.forward", "vit-tiny", "digits", "activation-rank"):
        assert word in listed
    assert command.run(parse("list", "--sizes")) == 0
    sizes = {words[0]: words[-1] for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    assert sizes["int8-g32"] == "8.50"
    assert sizes["paper:Q3"] == "8.03"
    words = ["--tp", "2", "--compress", "tp.forward=int8-g32/two-shot", "--seeds", "1", "--steps", "2", "--batch", "4"]
    out = tmp_path / "results" / "out.json"
    out.parent.mkdir()
    status = command.run(parse("run", *words, "--emulate", "--num-layers", "2", "--hidden", "32", "--json", str(out)))
    assert status == 0
    assert "one seed" in capsys.readouterr().out
    assert json.loads(out.read_text())["metric"] == "accuracy"
    assert command.run(parse("report", str(out.parent), "--html", str(tmp_path / "r.html"))) == 0
    with pytest.raises(ConfigError, match="allowed: 1"):
        command.run(parse("suite", "break-even", "--out", str(tmp_path), "--jobs", "4"))
    with pytest.raises(ConfigError, match="budget"):
        command.run(parse("suite", "paper", "--out", str(tmp_path), "--budget", "soon"))
    for command_words in (["run", "--emulate"], ["calibrate"]):
        with pytest.raises(ConfigError, match="there is no folder /nowhere"):
            command.run(parse(*command_words, "--json", "/nowhere/x.json"))
    with pytest.raises(ConfigError, match="LOW:HIGH"):
        _range("9:1", "hidden")


def test_ranks_get_cores_of_their_own() -> None:
    for world_size in (1, 2, 64):
        cores = cores_of_ranks(world_size)
        assert len(cores) == world_size
        assert len({len(own) for own in cores}) == 1
        flat = [core for own in cores for core in own]
        assert len(flat) == len(set(flat))


def test_lists_load_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from evenflow.cli.main import main; main(['mcbench', 'list']);"
        "assert not {'torch', 'transformers', 'numba'} & set(sys.modules), 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "int8-g32" in done.stdout


def test_names_are_what_is_there() -> None:
    assert tuple(GLUE) == GLUE_TASKS
    assert set(TRANSPORTS) == set(SUMS)
    assert {spec.partition(":")[0] for spec in SUMMARIES} == set(COMPRESSORS)
    assert tuple(rule.value for rule in GradientRule) == GRADIENT_RULES
    assert set(SCHEDULES) == set(pipeline_schedules)
    assert all(select_layers(name, 4) is not None for name in LAYER_NAMES)


def test_partial_results_of_a_broken_run_are_kept() -> None:
    task = load_task("digits")
    record = {"seed": 0, "scores": {"compressed": {"loss": 1.0, "accuracy": 0.5}, "dense": {"loss": 1.0, "accuracy": 0.5}}}
    result = summarise(RunConfig(tp=2, seeds=5), task, [{"kind": "seed", "value": record}])
    assert result["seeds"] == [0]
    assert result["accuracy"] == 0.5


def made_study() -> dict[str, Any]:
    rows = [
        {"spec": spec, "dense_bytes": size, "sent_bytes": size / (1 + i), "ms": size / 1000 / (1 + i)}
        for i, spec in enumerate(("none", "int8-g32"))
        for size in (1000, 4000)
    ]
    return {"study": "break-even", "from": "later", "link": "1gbit", "link_kind": "made up", "world_size": 2, "rows": rows}


def test_predictions_stand_beside_the_study_they_were_made_for_and_in_no_table_with_it(tmp_path: Path) -> None:
    study = made_study()
    off = {"none": 1.1, "int8-g32": 2.0}
    rows = [{**row, "ms": row["ms"] * off[row["spec"]]} for row in study["rows"]]
    prediction = {"prediction": "break-even", "at": "earlier", "link": "1gbit", "world_size": 2, "rows": rows}
    assert judged_by(prediction, study)
    assert not judged_by({**prediction, "world_size": 4}, study)
    assert prediction_errors(prediction, study)["none", 4000] == pytest.approx(0.1)
    for name, value in (("study", study), ("prediction", prediction)):
        (tmp_path / f"{name}-break-even-1gbit-2-ranks.json").write_text(json.dumps(value))
    out = tmp_path / "r.html"
    assert command.run(parse("report", str(tmp_path), "--html", str(out))) == 0
    text = out.read_text()
    measured, _, predicted = text.partition("Predicted: break-even on 1gbit, 2 ranks")
    assert "Predicted" not in measured
    assert "written at earlier, before the measurement that began at later" in predicted
    assert "2 of 4 predictions are within 25 %" in predicted
    assert "+100 %" in predicted
    for table in text.split("<table")[1:]:
        assert not ("predicted ms" in table and "sent bytes" in table)


@pytest.mark.multiprocess
@pytest.mark.slow
def test_break_even_is_predicted_before_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(break_even_module, "BREAK_EVEN_SPECS", ("none", "int8-g32"))
    monkeypatch.setattr(break_even_module.break_even, "__defaults__", (2, lambda text: None, ("none", "int8-g32"), (512,)))
    monkeypatch.setattr(break_even_module.predict_break_even, "__defaults__", (2, ("none", "int8-g32"), (512,)))
    words = ("suite", "break-even", "--link", "unlimited", "--out", str(tmp_path))
    assert command.run(parse(*words)) == 0
    study = json.loads((tmp_path / "study-break-even-unlimited-2-ranks.json").read_text())
    prediction = json.loads((tmp_path / "prediction-break-even-unlimited-2-ranks.json").read_text())
    assert prediction["at"] <= study["from"]
    assert set(prediction_errors(prediction, study)) == {("none", 2**20), ("int8-g32", 2**20)}
    (tmp_path / "prediction-break-even-unlimited-2-ranks.json").unlink()
    assert command.run(parse(*words)) == 0
    assert len(list(tmp_path.iterdir())) == 1, "what is measured is neither predicted nor measured again"


@pytest.mark.multiprocess
@pytest.mark.slow
def test_real_ranks_measure_and_failures_are_named() -> None:
    result = run(RunConfig(tp=2, compress="tp=int8-g32", seeds=1, steps=3, batch=8, hidden=32, num_layers=2, timed_steps=3))
    assert result["ms_per_iteration"]["total"] > 0
    assert {"forward", "backward", "optimizer", "encode", "decode", "waiting"} <= set(result["ms_per_iteration"]["profiled"])
    assert result["achieved_gbit_s"] > 0
    broken = launch("run", RunConfig(tp=2, task="chars", model="nowhere", seeds=1).to_json(), 2, Link.parse("unlimited"))
    assert broken.failure is not None
    assert "nowhere is no model folder" in broken.failure


@pytest.mark.slow
def test_dense_digits_with_the_defaults_reach_nine_tenths() -> None:
    result = run(RunConfig(seeds=1))
    assert result["accuracy"] >= 0.9
    # With compression on in training, and both on and off at evaluation.
    result = run(RunConfig(seeds=1, tp=2, compress="tp=int8-g32/two-shot", emulate=True))
    assert result["accuracy"] >= 0.9
    assert result["dense_at_eval"]["accuracy"] >= 0.9
    assert result["accuracy_by_seed"] == [result["scores_by_seed"][0]["compressed"]["accuracy"]]
