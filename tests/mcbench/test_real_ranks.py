"""Real ranks: shaped links and their counters, deaths in mid-run, torchrun, and timing side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import evenflow
from evenflow.base.errors import ConfigError
from evenflow.cli.main import main
from evenflow.comm import SilentCollective
from evenflow.comm.collectives.links import Link, interface_bytes, why_no_namespaces
from evenflow.comm.ledger import Kind
from evenflow.mcbench.predict.break_even import break_even, break_even_points
from evenflow.mcbench.predict.calibration import calibrate
from evenflow.mcbench.predict.cost_model import exchange_s
from evenflow.mcbench.runs import launch as launch_module
from evenflow.mcbench.runs.measure import expected_s
from evenflow.mcbench.runs.run import run
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.runs.timing import compute_s, time_variants

WHY = why_no_namespaces()
needs_namespaces = pytest.mark.skipif(WHY is not None, reason=f"no network namespaces here: {WHY}")
TINY: dict[str, Any] = {"tp": 2, "seeds": 1, "steps": 2, "batch": 8, "hidden": 32, "num_layers": 2, "timed_steps": 2}
HALF_A_MEGABYTE = 524_288


@needs_namespaces
@pytest.mark.slow
@pytest.mark.multiprocess
def test_bytes_are_within_two_percent_of_the_interface_counters() -> None:
    # Rows of 512 fp32 numbers. int8 messages are a quarter of the tensor.
    study = break_even(Link.parse("1gbit"), specs=("none", "bf16", "int8-g32"), rows=(512, 2048))
    assert study["link_kind"] == "network namespaces, tc tbf"
    checked = 0
    for row in study["rows"]:
        if row["sent_bytes"] >= HALF_A_MEGABYTE:
            checked += 1
            assert 1.0 <= row["interface_ratio"] <= 1.02, row
        assert 8 * row["sent_bytes"] / (row["ms"] / 1e3) < 1.2e9, "the link is not shaped"
    assert checked == 5


def test_counters_of_an_interface_that_is_not_there() -> None:
    assert interface_bytes("nowhere0") is None
    counted = interface_bytes("lo")
    assert counted is None or min(counted) >= 0


def test_exchanges_of_two_speeds_are_expected_at_their_mean() -> None:
    assert expected_s([0.3, 3.3] * 10) == pytest.approx((10 * 0.3 + 8 * 3.3) / 18)
    assert expected_s([1.0] * 9 + [50.0]) == 1.0, "a rare disturbance is left out"
    assert expected_s([2.0]) == 2.0


def test_break_even_points() -> None:
    def row(spec: str, size: int, ms: float) -> dict[str, Any]:
        return {"spec": spec, "dense_bytes": size, "ms": ms}

    none = [row("none", size, size / 100) for size in (100, 200, 400)]
    good = [row("good", 100, 0.5), row("good", 200, 2.5), row("good", 400, 3.0)]
    best = [row("best", size, 0.1) for size in (100, 200, 400)]
    never = [row("never", size, 9.0) for size in (100, 200, 400)]
    assert break_even_points({"rows": none + good + best + never}) == {"good": 400, "best": 100, "never": None}


def test_silence_has_the_right_shapes() -> None:
    group, x = SilentCollective(1, 3), torch.arange(6.0).view(3, 2)
    assert torch.equal(group.all_reduce(x), x)
    assert group.all_reduce(x) is not x
    assert group.all_gather(x).shape == (3, 3, 2)
    assert torch.equal(group.all_to_all(x), x)
    assert torch.equal(group.reduce_scatter(x), x[1])
    assert torch.equal(group.receive(torch.ones(2), 0), torch.zeros(2))
    group.send(x, 0)
    group.barrier()


def test_without_root_there_are_no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_no_namespaces() == "not root"


@pytest.mark.slow
@pytest.mark.multiprocess
def test_without_permission_the_link_is_emulated_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_module, "why_no_namespaces", lambda: "not root")
    study = break_even(Link.parse("100mbit"), specs=("none", "int8-g32"), rows=(512,))
    assert study["link_kind"] == "emulated: token bucket in the transport (not root)"
    for row in study["rows"]:
        assert row["interface_ratio"] is None
        assert row["ms"] > 0.8 * 1e3 * 8 * (row["sent_bytes"] - 65536) / 100e6
    timed = time_variants({"none": RunConfig(**TINY, link="100mbit")}, rounds=1, steps=2)
    assert timed["link"]["kind"].startswith("emulated")


def test_what_several_ranks_died_of_is_said_once() -> None:
    assert launch_module.obituaries({0: "failed: no", 1: "failed: no"}) == "ranks 0, 1 failed: no"
    assert launch_module.obituaries({0: "failed: no", 2: "ended by SIGKILL"}) == "rank 0 failed: no; rank 2 ended by SIGKILL"


def rank_processes() -> dict[int, int]:
    """Return {rank: process id} of this process's own children that are ranks."""
    found = {}
    for child in Path("/proc/self/task").glob("*/children"):
        for pid in child.read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if "evenflow.mcbench.rank" in words:
                found[int(words[words.index("evenflow.mcbench.rank") + 2])] = int(pid)
    return found


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_rank_that_is_killed_in_mid_run_costs_only_what_was_not_finished() -> None:
    killed: list[int] = []

    def kill_after_the_first_seed(text: str) -> None:
        if text.startswith("seed 0") and not killed:
            killed.append(rank_processes()[1])
            os.kill(killed[0], signal.SIGKILL)

    result = run(RunConfig(**{**TINY, "seeds": 50, "steps": 20}, compress="tp=int8-g32"), kill_after_the_first_seed)
    assert killed
    assert 1 <= len(result["seeds"]) < 50
    assert "rank 1 ended by SIGKILL" in result["incomplete"]
    assert "accuracy" in result


@pytest.mark.slow
@pytest.mark.multiprocess
def test_torchrun_launches_a_run_and_an_attached_model(tmp_path: Path) -> None:
    script = tmp_path / "attach.py"
    script.write_text(
        "import torch\n"
        "from torch.distributed.device_mesh import init_device_mesh\n"
        "from evenflow.mcbench import compress_model\n"
        "from evenflow.mcbench.runs.benchmark_models import make_model\n"
        'mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("pp", "tp"))\n'
        'rules = "tp.forward=int4-g32/two-shot; tp.backward=int8-g32/two-shot"\n'
        'model = compress_model(make_model("bert-tiny", 0), mesh, rules, layers="last-half")\n'
        "optimizer = torch.optim.AdamW(model.parameters())\n"
        "logits = model(input_ids=torch.arange(32).view(2, 16)).logits\n"
        "logits.sum().backward()\n"
        "optimizer.step()\n"
        'print("SUM", float(logits.sum()), flush=True)\n'
        "torch.distributed.destroy_process_group()\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(evenflow.__file__).parents[1]), "GLOO_SOCKET_IFNAME": "lo"}

    def launched(*words: str) -> str:
        done = subprocess.run([*torchrun, *words], capture_output=True, text=True, env=environment, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    sums = {line.split()[-1] for line in launched(str(script)).splitlines() if "SUM" in line}
    assert len(sums) == 1, "ranks do not hold equal logits"

    out = tmp_path / "out.json"
    size = ["--seeds", "1", "--steps", "3", "--batch", "8", "--hidden", "32", "--num-layers", "2", "--timed-steps", "2"]
    words = ["mcbench", "run", "--tp", "2", "--compress", "tp=int8-g32/two-shot", *size, "--json", str(out)]
    said = launched("-m", "evenflow.cli.main", *words)
    assert said.count("ms per iteration over") == 1
    result = json.loads(out.read_text())
    local = run(RunConfig(**{**TINY, "steps": 3}, compress="tp=int8-g32/two-shot"))
    assert result["accuracy_by_seed"] == local["accuracy_by_seed"]
    assert result["bytes_per_step"] == local["bytes_per_step"]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_calibration_prediction_and_timing_work_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = calibrate(Link.parse("unlimited"), ("bf16", "int8-g32", "int4-g32", "ae:100"), between=Link.parse("100mbit"))
    assert machine.link_between == "100mbit"
    assert machine.boundary.unit_s > 4 * machine.operation(Kind.SEND).unit_s
    machine.write(tmp_path / "machine.json")
    assert {"all-reduce", "all-reduce bfloat16", "all-gather", "all-to-all", "send"} <= set(machine.operations)
    assert exchange_s(machine, "int8-g32", 1024, 256, 2) > 0
    words = ["mcbench", "predict", "--machine", str(tmp_path / "machine.json"), "--html", str(tmp_path / "p.html")]
    assert main(words) == 0
    assert "Predicted, not measured" in (tmp_path / "p.html").read_text()
    assert main(["mcbench", "advise", "--model", "bert-tiny", "--tp", "4", "--machine", str(tmp_path / "machine.json")]) == 0
    assert "predicted for one sum of [2048, 64]" in capsys.readouterr().out
    configs = {"dense": RunConfig(**TINY), "int8": RunConfig(**TINY, compress="tp=int8-g32")}
    assert 0 < compute_s(configs["dense"], 3) < 10
    timed = time_variants(configs, rounds=2, steps=2)
    assert [m["round"] for m in timed["variants"]["int8"]] == [0, 1]
    sent = {name: rounds[0]["bytes_per_step"]["tp.forward"]["counted"] for name, rounds in timed["variants"].items()}
    # All layers are compressed by default: 8.5 of 32 bits.
    assert sent["int8"] == pytest.approx(8.5 / 32 * sent["dense"])


@pytest.mark.slow
@pytest.mark.multiprocess
def test_data_parallel_ranks_train_and_are_measured() -> None:
    options: dict[str, Any] = {**TINY, "tp": 1, "dp": 2, "timed_steps": 3}
    dense, rough = (run(RunConfig(**options, compress=spec)) for spec in ("none", "dp=ef(int4-g32)"))
    sent = [result["bytes_per_step"]["dp.gradients"] for result in (dense, rough)]
    assert sent[1]["planned"] == sent[1]["counted"]
    assert sent[1]["counted"] / sent[0]["counted"] == pytest.approx(4.5 / 32, rel=0.02)
    assert {"encode", "decode", "dp communication"} <= set(rough["ms_per_iteration"]["profiled"])
    assert rough["achieved_gbit_s"] > 0
    assert 0 <= rough["accuracy"] <= 1


def test_data_parallelism_stands_alone() -> None:
    for options in ({"dp": 2, "tp": 2}, {"dp": 2, "emulate": True}, {"compress": "dp=q8"}):
        with pytest.raises(ConfigError, match=r"data parallelism runs on real ranks alone|only one rank at that site"):
            RunConfig(**options)
