"""The cost model: its bytes are the transports', its shapes are the paper's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.cli.main import main
from evenflow.comm.ledger import Kind
from evenflow.mcbench.predict.advice import Question, advise, ranges_in_words
from evenflow.mcbench.predict.calibration import coding_s
from evenflow.mcbench.predict.cost_model import (
    WEAK_SCALING,
    PaperModel,
    Shape,
    errors_of,
    exchange_s,
    gradients_s,
    layer_flops,
    pays_from,
    speed_up,
    step_s,
    winning_ranges,
)
from evenflow.mcbench.predict.gpus import on_gpu
from evenflow.mcbench.predict.machine import Curve, Machine, curve
from evenflow.mcbench.predict.prediction_page import prediction_page, weak_shape
from evenflow.mcbench.predict.published import LOSSES, SOURCE, published_evaluation
from evenflow.mcbench.runs.benchmark_models import hidden_of

CODED = ("bf16", "int8-g32", "int4-g32", "ae:100", "topk:0.1", "powersgd:50")


def line(fixed_s: float, unit_s: float) -> Curve:
    return curve([(0.0, fixed_s), (1e12, fixed_s + 1e12 * unit_s)])


def machine(gbit_s: float = 1.0, coding_ns: float = 1.0, operation_s: float = 1e-4) -> Machine:
    coding = dict.fromkeys(CODED, line(0.0, coding_ns * 1e-9))
    operations = {kind.value: line(operation_s, 8 / (gbit_s * 1e9)) for kind in Kind}
    return Machine(((256, 1e12),), operations, coding, coding, "test", "made up")


def test_operations_of_a_layer() -> None:
    shape = Shape(hidden=1024, layers=1, sequence=128, micro_batch=16)
    assert layer_flops(shape, is_recomputed=True) == 96 * 16 * 128 * 1024**2 + 16 * 16 * 128**2 * 1024
    assert layer_flops(shape) / layer_flops(shape, is_recomputed=True) == pytest.approx(0.75)


def test_exchange_is_bytes_over_rate_plus_fixed_time() -> None:
    plain = machine(coding_ns=0.0)
    assert exchange_s(plain, "none", 512, 1024, 2) == pytest.approx(1e-4 + 512 * 1024 * 4 / 125e6)
    two_shot = 2e-4 + 512 * 1024 * (1 + 2 / 32) / 125e6
    assert exchange_s(plain, "int8-g32/two-shot", 512, 1024, 2) == pytest.approx(two_shot)
    assert exchange_s(plain, "int8-g32", 512, 1024, 2) == pytest.approx(two_shot - 1e-4), "two ranks: one operation"
    assert exchange_s(machine(), "int8-g32/two-shot", 512, 1024, 2) == pytest.approx(two_shot + 512 * 1024 * (1.5 + 2.0) * 1e-9)
    assert exchange_s(plain, "none", 512, 1024, 1) == 0.0
    with pytest.raises(ConfigError, match="not calibrated; known: bf16"):
        exchange_s(plain, "q8", 4, 64, 2)


def test_compression_pays_on_slow_links_and_not_on_fast_ones() -> None:
    shape = Shape(hidden=2048, layers=4)
    assert speed_up(machine(1.0), shape, "int8-g32") > 1.5
    assert speed_up(machine(800.0), shape, "int8-g32") < 1.0
    slow, fast = winning_ranges(machine(1.0), "int8-g32", 2), winning_ranges(machine(800.0), "int8-g32", 2)
    assert fast == []
    assert [high for _, high in slow] == [None], "on and on"
    rule = "int8-g32/two-shot"
    earlier, later = winning_ranges(machine(1.0, operation_s=1e-5), rule, 2), winning_ranges(machine(1.0), rule, 2)
    assert earlier[0][0] < later[0][0]
    assert pays_from(machine(1.0), rule, 2) == later[0][0]
    with pytest.raises(ConfigError, match="int8-g32/two-shot over 2 ranks on test does not pay"):
        pays_from(machine(800.0), rule, 2)


def test_break_even_is_a_range_where_the_link_lets_bursts_pass() -> None:
    """Some sizes lose between sizes that win: here messages of 64 KiB and less pass at once, as on a token bucket."""
    burst = curve([(0.0, 1e-4), (32768.0, 1e-4), (33000.0, 2e-3), (1e9, 2e-3 + 1e9 * 8e-9)])
    bursty = replace(machine(coding_ns=0.0), operations=dict.fromkeys((kind.value for kind in Kind), burst))
    ranges = winning_ranges(bursty, "int8-g32/two-shot", 2, width=64)
    assert len(ranges) == 2
    (low, high), (again, end) = ranges
    assert high is not None
    assert low < high < again
    assert end is None
    words = ranges_in_words(ranges)
    assert words.count("from") == 2
    assert "to" in words
    assert ranges_in_words([]) == "does not pay up to 1 GiB"


def test_what_trainers_send_is_bf16_and_has_to_be_beaten() -> None:
    n = 512 * 1024
    plain = machine(coding_ns=0.0)
    assert exchange_s(plain, "none", 512, 1024, 2, torch.bfloat16) == pytest.approx(1e-4 + 2 * n * 8e-9)
    halved = {spec: winning_ranges(machine(1.0), f"{spec}/two-shot", 2, baseline="bf16") for spec in ("int8-g32", "int4-g32")}
    assert halved["int4-g32"][0][0] < halved["int8-g32"][0][0], "half as many bytes win earlier"
    lines = advise(plain, Question(hidden=1024, tp=2, dtype="bf16"))
    assert "[2048, 1024] bf16 over 2 ranks" in lines[0]
    assert "of bf16" in next(
        line for line in advise(plain, Question(hidden=1024, tp=2, dtype="fp32")) if line.startswith("int8")
    )


def test_a_gpu_by_name_changes_the_arithmetic_and_the_coding() -> None:
    gpu = on_gpu(machine(10.0, coding_ns=5.0), "H100", 2)
    assert gpu.flops_at(4096) == pytest.approx(0.4 * 989e12)
    # 2 bytes read and 34 / 32 written an element, at six tenths of 3350 GB/s.
    assert gpu.encode["int8-g32"].unit_s == pytest.approx((2 + 34 / 32) / (0.6 * 3350e9))
    assert machine().at_arithmetic(2.0).flops_at(64) == 2e12
    with pytest.raises(RegistryError, match="unknown GPU 'h9000'; known: v100"):
        on_gpu(machine(), "h9000", 2)
    with pytest.raises(ConfigError, match="tflops is -1"):
        machine().at_arithmetic(-1)


def test_gradients_of_data_parallel_ranks_go_by_buckets() -> None:
    plain = machine(coding_ns=0.0)
    one = gradients_s(plain, "none", 25 * 2**18, 2)
    assert one == pytest.approx(exchange_s(plain, "none", 25 * 256, 1024, 2))
    assert gradients_s(plain, "none", 100 * 2**18, 2) == pytest.approx(4 * one)
    assert gradients_s(plain, "int4-g32", 25 * 2**18, 2) < 0.2 * one


def test_the_paper_formula_falls_with_hidden_size_and_keeps_a_gain_when_nodes_scale() -> None:
    paper = PaperModel.of(machine(10.0, coding_ns=0.02))
    at_one_node = [paper.speed_up(Shape(hidden=h, layers=1)) for h in (1024, 4096, 12288, 25600)]
    assert at_one_node == sorted(at_one_node, reverse=True)
    assert at_one_node[0] > 1.1
    assert 1.0 < at_one_node[-1] < 1.02
    weak = [paper.speed_up(Shape(hidden=h, layers=layers, nodes=n, microbatches=4 * n)) for h, layers, n in WEAK_SCALING]
    alone = paper.speed_up(Shape(hidden=25600, layers=1))
    assert weak[-1] > alone


def falls(values: list[float]) -> bool:
    return values == sorted(values, reverse=True)


def test_hidden_size_alone_makes_the_gain_vanish() -> None:
    """The paper's first scaling figure."""
    made = machine(1.0, coding_ns=0.02)
    for speed in (lambda shape: speed_up(made, shape, "int8-g32"), PaperModel.of(made).speed_up):
        gains = [speed(Shape(hidden=h, layers=1)) for h in (1024, 2304, 4096, 8192, 12288, 25600)]
        assert falls(gains)
        assert 0 < gains[-1] - 1 < 0.15 * (gains[0] - 1)


def test_weak_scaling_levels_off_if_nodes_are_farther_apart_than_ranks() -> None:
    """The paper's second scaling figure: a fast link inside a node and a slow one between them make a plateau."""
    one = machine(1.0, coding_ns=0.02)
    two = one.at_rate_between("100mbit", 1e8)
    shapes = [weak_shape(*row) for row in WEAK_SCALING]

    def gains(of: Machine) -> tuple[list[float], list[float]]:
        return [speed_up(of, shape, "int8-g32") for shape in shapes], [PaperModel.of(of).speed_up(shape) for shape in shapes]

    for falling, level in zip(gains(one), gains(two)):
        # One link: what is gained on one node is lost as the model grows, from 16 to 64 nodes as before.
        assert falls(falling)
        assert falling[-1] - 1 < 0.75 * (falling[4] - 1)
        # Two: it falls first, and then stays where it is.
        assert falls(level[:4])
        late = [gain - 1 for gain in level[4:]]
        assert max(late) < 1.15 * min(late)
        assert late[-1] > 1.5 * (falling[-1] - 1)
    alone = Shape(hidden=1024, layers=1)
    assert speed_up(one, alone, "int8-g32") == speed_up(two, alone, "int8-g32"), "one node has nothing between nodes"


def test_pipeline_bubble_and_boundaries() -> None:
    fast = machine(1e9, 0.0, 0.0)
    one = step_s(fast, Shape(hidden=512, layers=8, tp=1, microbatches=8))
    four = step_s(fast, Shape(hidden=512, layers=8, tp=1, nodes=4, microbatches=8))
    assert four / one == pytest.approx((8 + 3) / 8 / 4, rel=1e-3)


def test_predictions_are_judged() -> None:
    good = errors_of({"a": 100.0, "b": 80.0}, {"a": 110.0, "b": 90.0})
    assert good["within_25_percent"]
    assert good["swapped"] == []
    bad = errors_of({"a": 100.0, "b": 50.0}, {"a": 60.0, "b": 90.0})
    assert not bad["within_25_percent"]
    assert bad["swapped"] == [("a", "b")]


def test_curves_are_straight_between_points() -> None:
    made = curve([(1000, 1e-3), (100, 1e-4), (3000, 5e-3)])
    assert [made.at(size) for size in (1, 100, 550, 1000, 2000, 5000)] == pytest.approx([1e-4, 1e-4, 5.5e-4, 1e-3, 3e-3, 9e-3])
    assert made.fixed_s == 1e-4
    assert made.unit_s == pytest.approx(2e-6)
    assert curve([(10, 1.0)]).at(20) == pytest.approx(2.0)
    assert curve([(10, 1.0), (20, 0.9)]).at(1000) == pytest.approx(0.9)


def test_sums_on_the_way_cost_by_dtype_and_rings_pay_their_fixed_time_per_step() -> None:
    slow_sums = {**machine().operations, "all-reduce bfloat16": line(1e-4, 16e-9)}
    two = replace(machine(coding_ns=0.0), operations=slow_sums)
    n = 512 * 1024
    assert exchange_s(two, "bf16", 512, 1024, 2) == pytest.approx(1e-4 + 2 * n * 16e-9)
    assert exchange_s(two, "none", 512, 1024, 8) == pytest.approx(7e-4 + 2 * 7 / 8 * 4 * n * 8e-9)
    with pytest.raises(ConfigError, match="send was not calibrated; known: all-reduce"):
        Machine(((256, 1e12),), {"all-reduce": line(0.0, 1.0)}).operation(Kind.SEND)


def test_a_faster_link_is_assumed_with_the_fixed_times_measured() -> None:
    fast = machine(1.0, operation_s=3e-4).at_rate("100gbit", 100e9)
    assert exchange_s(fast, "none", 512, 1024, 2) == pytest.approx(3e-4 + 512 * 1024 * 4 * 8 / 100e9)
    assert fast.link == "100gbit"
    assert fast.link_kind.startswith("assumed")


def test_calls_of_coding_have_a_fixed_price() -> None:
    coding = dict.fromkeys(CODED, line(1e-3, 0.0))
    priced = replace(machine(operation_s=0.0), encode=coding, decode=coding)
    free = machine(coding_ns=0.0, operation_s=0.0)
    for transport, calls in (("two-shot", 5 + 8), ("one-shot", 1 + 4)):
        rule = f"int8-g32/{transport}"
        extra = exchange_s(priced, rule, 64, 64, 4) - exchange_s(free, rule, 64, 64, 4)
        assert extra == pytest.approx(calls * 1e-3)


def test_rates_between_calibrated_sizes() -> None:
    made = replace(machine(), flop_per_s=((256, 1e9), (1024, 3e9)))
    assert [made.flops_at(h) for h in (64, 256, 512, 1024, 25600)] == pytest.approx([1e9, 1e9, 2e9, 3e9, 3e9])


def test_calibrations_come_back_and_broken_files_are_named(tmp_path: Path) -> None:
    for made in (machine(), machine().at_rate_between("100mbit", 1e8)):
        made.write(tmp_path / "m.json")
        assert Machine.read(tmp_path / "m.json") == made
    (tmp_path / "x.json").write_text("{}")
    for name in ("x.json", "missing.json"):
        with pytest.raises(ConfigError, match="is no calibration"):
            Machine.read(tmp_path / name)


def test_coding_times_are_positive() -> None:
    assert min(coding_s("int8-g32", rows=16, width=64, repeats=1)) > 0


def test_advice_orders_by_time_and_cites_evidence(tmp_path: Path) -> None:
    def result(compress: str, values: list[float]) -> dict[str, object]:
        return {
            "parameters": {"task": "digits", "compress": compress},
            "metric": "accuracy",
            "seeds": [0, 1],
            "accuracy_by_seed": values,
        }

    row = {"spec": "tp.forward=int4-g32", "difference": 0.25, "interval": 0.02}
    evaluation = {"rows": [row], "parameters": {"model": "real", "tp": 3, "text": "a.txt"}}
    results = [result("none", [0.9, 0.92]), result("tp.forward=int4-g32/two-shot", [0.89, 0.91])]
    lines = advise(machine(), Question(hidden=64, tp=2, batch=128, dtype="fp32"), results, [evaluation])
    assert lines[0].startswith("predicted")
    assert "accuracy on digits with tp.forward=int4-g32/two-shot -0.0100 ± 0.0000" in next(
        line for line in lines if line.startswith("int4-g32")
    )
    assert any("loss +0.2500 ± 0.0200 on real, TP 3, a.txt" in line for line in lines if line.startswith("int4-g32"))
    assert "evidence: none" in next(line for line in lines if line.startswith("bf16"))
    assert "does not pay here" in advise(machine(1e4, 1000.0), Question(hidden=64, tp=2, batch=1))[-1]
    with pytest.raises(ConfigError, match="one rank"):
        Question(hidden=64, tp=1)
    assert hidden_of("vit-tiny") == 64


def test_advice_for_another_link_than_the_calibrated_one_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine().write(tmp_path / "m.json")
    words = ["mcbench", "advise", "--model", "bert-tiny", "--tp", "4", "--machine", str(tmp_path / "m.json")]
    assert main([*words, "--link", "10gbit"]) == 0
    assert "on 10gbit (assumed" in capsys.readouterr().out
    assert main(words) == 0
    assert "on test (made up)" in capsys.readouterr().out


def test_prediction_page_says_that_it_predicts(tmp_path: Path) -> None:
    page = prediction_page(machine(), ("bf16", "int8-g32"), (1024, 6144, 25600), (1, 64))
    page.write(tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text()
    assert "Predicted, not measured" in text
    assert "25600" in text or "25,600" in text
    assert "10 times slower" in text, "one link: the paper's two are assumed beside it"
    two = prediction_page(machine().at_rate_between("50mbit", 5e7), ("bf16", "int8-g32"), (1024, 6144, 25600), (1, 64)).html()
    assert "between nodes 50mbit (assumed" in two
    assert "10 times slower" not in two


def test_the_evidence_that_comes_along_is_the_published_files() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "results" / SOURCE
    published = json.loads(path.read_text())["results"]
    rows = {row["spec"]: row for row in published["rows"]}
    assert set(LOSSES) == set(rows) - {"none"}
    for spec, (difference, half) in LOSSES.items():
        assert rows[spec]["difference"] == pytest.approx(difference, abs=5.1e-5), spec
        assert rows[spec]["interval"] == pytest.approx(half, abs=5.1e-5), spec
    said = published_evaluation()["parameters"]
    assert (said["model"], said["tp"], published["tokens"]) == (
        published["parameters"]["model"],
        published["parameters"]["tp"],
        4096,
    )
