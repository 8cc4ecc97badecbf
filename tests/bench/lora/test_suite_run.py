"""The benchmark as a user runs it: a document that grows and is continued, its page, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.bench.lora.lora_page import lora_page
from evenflow.bench.lora.suite_run import LoRAOptions, SuiteRun, plan_samples
from evenflow.bench.lora.suites import SUITES, LoRASuite, suite
from evenflow.bench.lora.tables import explained_ratio, paired, suite_table, total_ratio
from evenflow.cli.main import main

OPTIONS = LoRAOptions(setting="tiny", dtype="float32", max_num_seqs=4, num_threads=1)
WITHOUT_A_FRAMEWORK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fastapi", "starlette", "uvicorn", "msgspec", "zmq", "transformers", "peft"):
            raise ImportError(f"{name} is not on this machine")

sys.meta_path.insert(0, Blocked())
from evenflow.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def small(name: str, **changes):
    """A suite with points that take milliseconds."""
    chosen = suite(name)
    cases = [
        replace(
            case,
            point=replace(
                case.point,
                num_adapters=min(case.point.num_adapters, 24),
                rate=30.0,
                duration_s=0.3,
                input_range=(2, 9),
                output_range=(2, 6),
            ),
            memory="1MiB",
        )
        for case in chosen.cases
    ]
    return replace(chosen, cases=tuple(cases[:: max(1, len(cases) - 1)]), **changes)


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """A document of two suites."""
    return measured(tmp_path_factory.mktemp("lora"), [small("adapters", rounds=1), small("ranks", rounds=1)])


@pytest.fixture(scope="module")
def whole_document(tmp_path_factory):
    """One small document of every way of measuring that needs no peer."""
    suites = [
        small("adapters", rounds=2),
        small("memory", rounds=1),
        small("rate", rounds=1, variants=("unified",)),
        small("clustering", rounds=1),
        small("merge", variants=("unified", "merged:16"), rounds=1),
        small("footprint"),
        small("ranks", rounds=1),
        replace(small("operators"), cases=(SUITES["operators"].cases[1],)),
    ]
    return measured(tmp_path_factory.mktemp("lora"), suites)


def measured(folder: Path, suites: list[LoRASuite]) -> dict:
    """What the suites leave behind in ``folder``, after a second run that finds everything done."""
    run = SuiteRun(folder / "lora.json", OPTIONS, folder / "cache")
    planned = plan_samples(suites, [], None)
    counts = run.run(planned)
    assert (counts.measured, counts.kept, counts.left) == (len(planned), 0, 0)
    again = SuiteRun(folder / "lora.json", OPTIONS, folder / "cache").run(planned)
    assert (again.measured, again.kept) == (0, len(planned))
    return json.loads((folder / "lora.json").read_text())


@pytest.mark.slow
def test_every_suite_has_its_samples(whole_document):
    results = whole_document["results"]
    assert len(results) == 8
    adapters = results["adapters"]["cases"]
    assert [len(case["samples"]["unified"]) for case in adapters.values()] == [2, 2]
    first, last = (case["samples"]["unified"][0] for case in adapters.values())
    assert first["adapter_bytes"] == 0 < last["adapter_bytes"]
    assert first["rows"] == last["rows"], "the same steps of the same requests"
    for case in results["merge"]["cases"].values():
        assert {name: samples[0]["output_tokens"] for name, samples in case["samples"].items()} == {
            "unified": 16 * 48,
            "merged:16": 16 * 48,
        }
    footprint = results["footprint"]["cases"]["1"]["samples"]["unified"][0]
    assert 0 < footprint["row_bytes"] <= footprint["num_adapter_pages"] * footprint["page_bytes"]
    assert footprint["anonymous_bytes"] > 0


def test_a_held_batch_stays_what_it_is(document):
    for case in document["results"]["ranks"]["cases"].values():
        for samples in case["samples"].values():
            assert samples[0]["sequences"] == 4 * samples[0]["steps"] == samples[0]["output_tokens"]


@pytest.mark.slow
def test_page_and_tables_show_every_suite(whole_document, tmp_path):
    page = lora_page(whole_document).html()
    for name, result in whole_document["results"].items():
        headers, rows = suite_table(result)
        assert rows
        assert all(len(row) == len(headers) for row in rows)
        assert f">{name}</h2>" in page
    assert page.count("<svg") >= 8
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons", ""
    )


def test_another_setting_needs_another_file(document, tmp_path):
    path = tmp_path / "lora.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="name another file"):
        SuiteRun(path, replace(OPTIONS, max_num_seqs=5), tmp_path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="no result of this benchmark"):
        SuiteRun(path, OPTIONS, tmp_path)


def test_the_budget_leaves_samples_for_later(tmp_path):
    planned = plan_samples([small("adapters", rounds=1)], [], None)
    counts = SuiteRun(tmp_path / "lora.json", OPTIONS, tmp_path).run(planned, budget_s=-1.0)
    assert (counts.measured, counts.left) == (0, len(planned))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--suite", "nosuch"], "known: adapters"),
        (["--variants", "nosuch"], "known: unified"),
        (["--variants", "partitioned:2"], "allowed: partitioned:SHARE"),
        (["--variants", "slots:0"], "allowed: partitioned:SHARE"),
        (["--variants", "peft"], "fixed sets"),
        (["--setting", "S9"], "unknown setting"),
        (["--budget", "soon"], "allowed: a number and s, m or h"),
        (["--rounds", "0"], "allowed: 1 or more"),
        (["--suite", ","], "names no suite"),
        (["--html", "/nowhere/at/all.html"], "there is no folder"),
        (["--max-num-seqs", "0"], "allowed: 1 to 4096"),
    ],
)
def test_wrong_use_is_told(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "lora", *arguments]) == 1
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_list_names_everything(capsys):
    assert main(["bench", "lora", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*SUITES, "partitioned", "peft-names", "135m", "S6"])


def test_unknown_names_are_told_with_the_known():
    with pytest.raises(RegistryError, match="known: adapters"):
        suite("x")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_runs_where_no_web_framework_is_installed(tmp_path, monkeypatch):
    """A GPU machine may have torch, triton and numba alone: the command and its measuring process need no more."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(WITHOUT_A_FRAMEWORK.split("from evenflow")[0])
    monkeypatch.setenv("PYTHONPATH", f"{site}:{Path(__file__).parents[3] / 'src'}")
    command = ["bench", "lora", "--suite", "footprint", "--setting", "tiny", "--dtype", "float32", "--threads", "1", "--quiet"]
    files = ["--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html"), "--cache-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_FRAMEWORK, *command, *files], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "a.json").read_text())["results"]["footprint"]["cases"]
    assert "<svg" in (tmp_path / "a.html").read_text()


def test_ratios_pair_rounds_and_traffic_explains_its_share():
    def sample(round_number, seconds, read=0.0, loaded=0.0):
        return {
            "round": round_number,
            "steps": 10,
            "seconds": seconds,
            "output_tokens": 100,
            "adapter_bytes": read,
            "loaded_bytes": loaded,
        }

    slow = [sample(0, 2.0, 4e9), sample(1, 4.0, 4e9), sample(7, 1.0)]
    fast = [sample(1, 2.0), sample(0, 1.0)]
    assert paired(slow, fast, lambda s: s["output_tokens"] / s["seconds"]) == [0.5, 0.5]
    assert total_ratio(slow, fast) == pytest.approx(0.5)
    # 8 GB at 20 GB/s are 0.4 s on top of 3 s in all
    assert explained_ratio(slow, fast, {"read": 20e9, "copy": 10e9}) == pytest.approx(1 / (1 + 0.4 / 3))
    assert explained_ratio([sample(0, 1.0, 0.0, 1e9)], fast, {"read": 20e9, "copy": 10e9}) == pytest.approx(1 / 1.1)
    assert total_ratio(slow, [sample(3, 1.0)]) is None
