"""Tasks and their scores: pinned data, splits without leaks, local files, definitions of metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evenflow.base.errors import ConfigError, ModelError, RegistryError, TrainingDiverged
from evenflow.mcbench.runs.benchmark_models import load_model, make_model
from evenflow.mcbench.runs.trainer import ModelTrainee, Schedule, batches, evaluate, train
from evenflow.mcbench.suites.studies import activation_rank, energy_rank, logit_errors
from evenflow.mcbench.tasks.load import load_task
from evenflow.mcbench.tasks.pins import check_pin
from evenflow.mcbench.tasks.scores import f1, matthews, mean_and_interval, pearson, spearman


def test_digits_are_pinned_and_split() -> None:
    task = load_task("digits")
    assert task.is_pinned
    assert (len(task.train), len(task.test)) == (1437, 360)
    assert task.train.inputs["pixel_values"].shape == (1437, 1, 8, 8)
    with pytest.raises(ConfigError, match="has sha256 abc"):
        check_pin("digits", "any", "abc")
    assert not check_pin("topics", "9.9.9", "abc")


def test_language_and_pairs_do_not_leak() -> None:
    chars = load_task("chars")
    assert chars.train.inputs["input_ids"].max() < chars.vocab_size
    pairs = load_task("pairs")
    assert float(pairs.test.labels.float().mean()) == 0.5
    second = pairs.train.inputs["token_type_ids"].bool()
    train_rows = {tuple(row[mask].tolist()) for row, mask in zip(pairs.train.inputs["input_ids"], second)}
    mask = pairs.test.inputs["token_type_ids"].bool()
    test_rows = {tuple(row[m].tolist()) for row, m in zip(pairs.test.inputs["input_ids"], mask)}
    assert len(test_rows) > 100
    assert not test_rows & train_rows


def test_halves_of_the_digits_and_hidden_words() -> None:
    low, high, words, topics = (load_task(name) for name in ("digits-low", "digits-high", "words", "topics"))
    assert len(low.train) + len(high.train) == 1437
    assert set(high.test.labels.tolist()) == {0, 1, 2, 3, 4}
    hidden = words.train.labels != -100
    assert (hidden.sum(1) == 10).all()
    shown = words.train.inputs["input_ids"]
    assert 0.75 < float((shown[hidden] == 3).float().mean()) < 0.85
    assert torch.equal(shown[~hidden], shown[~hidden].clamp_min(2))
    assert len(set(topics.test.labels.tolist())) == topics.num_labels


def test_unknown_tasks_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"known: digits, .*, pairs, tokens, and with --data-root: glue/cola"):
        load_task("imagenet")
    with pytest.raises(ConfigError, match="needs --data-root"):
        load_task("glue/mrpc")
    with pytest.raises(ConfigError, match="there is no folder"):
        load_task("glue/mrpc", tmp_path)
    (tmp_path / "glue" / "mrpc").mkdir(parents=True)
    with pytest.raises(ConfigError, match="has no train file"):
        load_task("glue/mrpc", tmp_path)
    with pytest.raises(ModelError, match="no model folder"):
        load_model(tmp_path, "sentences", 2)


def test_metrics_by_definition() -> None:
    p, t = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    assert f1(p, t) == pytest.approx(2 / 3)
    assert matthews(p, t) == pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))
    assert matthews(np.ones(4), np.array([0, 1, 0, 1])) == 0.0
    x = np.array([1.0, 2.0, 3.0, 10.0])
    assert pearson(x, 2 * x + 1) == pytest.approx(1.0)
    assert spearman(x, x**3) == pytest.approx(1.0)
    from scipy.stats import spearmanr

    a, b = np.array([1.0, 2.0, 2.0, 5.0, 3.0]), np.array([2.0, 1.0, 4.0, 4.0, 0.0])
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    mean, half = mean_and_interval([0.9, 0.92, 0.94])
    assert mean == pytest.approx(0.92)
    assert half == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)
    assert mean_and_interval([0.5]) == (0.5, None)


def test_batches_are_equal_for_equal_seeds_and_fixed_when_asked() -> None:
    split = load_task("digits").train
    once = [index.tolist() for _, index in batches(split, Schedule(num_steps=50), 3)]
    assert once == [index.tolist() for _, index in batches(split, Schedule(num_steps=50), 3)]
    assert once != [index.tolist() for _, index in batches(split, Schedule(num_steps=50), 4)]
    seen: dict[int, list[int]] = {}
    for number, index in batches(split, Schedule(num_steps=100, fixed_batches=True), 3):
        assert seen.setdefault(number, index.tolist()) == index.tolist()


def test_a_short_training_learns_and_divergence_is_reported() -> None:
    task = load_task("digits")
    model = make_model("vit-tiny", 0, num_labels=10, num_layers=1, hidden_size=32, num_heads=2)
    before = evaluate(model, task)["loss"]
    train(ModelTrainee(model, task, Schedule(num_steps=40, batch_size=16, learning_rate=3e-3)), 0)
    assert evaluate(model, task)["loss"] < before - 0.05
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="diverged at step 1: the loss is nan"):
        train(ModelTrainee(model, task, Schedule(num_steps=2)), 0)


def test_energy_rank() -> None:
    assert energy_rank(torch.diag(torch.tensor([10.0, 1.0, 1.0]))) == 1
    assert energy_rank(torch.eye(10)) == 9
    study = activation_rank("digits", steps=2)
    assert len(study["rows"]) == 8
    assert all(1 <= row["activation_rank_90"] <= row["width"] for row in study["rows"])


def test_tensor_parallel_inference_of_a_random_llama() -> None:
    rows = {row["spec"]: row for row in logit_errors(["none", "int8-g32", "int4-g32", "bf16"])}
    assert rows["none"]["logit_error"] < 1e-5
    assert rows["int8-g32"]["logit_error"] < rows["int4-g32"]["logit_error"] < 0.3
    assert rows["int8-g32"]["bytes"] / rows["none"]["bytes"] == pytest.approx(8.5 / 32)
    assert rows["bf16"]["bytes"] / rows["none"]["bytes"] == pytest.approx(0.5)
