"""Pre-training before the task of a run: what is carried over, what is remembered, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evenflow.base.errors import ConfigError, ModelError
from evenflow.mcbench.runs.benchmark_models import make_model
from evenflow.mcbench.runs.pretrain import Backbones, pretraining_of, start_from
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.split.attach import emulate_model
from evenflow.mcbench.suites.suite import suite

CONFIG = RunConfig(task="digits-high", pretrain="digits-low", emulate=True, tp=2, compress="tp.forward=q8", steps=3)


def test_pre_training_has_its_own_compression_and_no_layout_without_any() -> None:
    before = pretraining_of(CONFIG)
    assert (before.task, before.compress, before.tp, before.steps, before.pretrain) == ("digits-low", "none", 1, 0, "")
    rough = RunConfig(**{**CONFIG.to_json(), "pretrain_compress": "tp.forward=q4"})
    assert (pretraining_of(rough).compress, pretraining_of(rough).tp) == ("tp.forward=q4", 2)
    assert pretraining_of(rough).key() != before.key()
    with pytest.raises(ConfigError, match="needs virtual ranks"):
        RunConfig(task="digits-high", pretrain="digits-low")


def test_a_backbone_is_carried_over_without_head_and_compressors(tmp_path: Path) -> None:
    first = emulate_model(make_model("vit-tiny", 1, num_labels=4), 2, "tp.forward=ae:8")
    backbones = Backbones(tmp_path)
    assert backbones.find(CONFIG, 0) is None
    state = backbones.keep(CONFIG, 0, first)
    assert not any("compression" in name or "classifier" in name for name in state)
    found = Backbones(tmp_path).find(CONFIG, 0)
    assert found is not None
    second = make_model("vit-tiny", 2, num_labels=10)
    start_from(second, found)
    parameters = dict(second.named_parameters())
    for name, value in first.vit.named_parameters():  # type: ignore[union-attr]
        assert torch.equal(parameters[f"vit.{name}"], value)
    assert parameters["classifier.weight"].shape[0] == 10
    with pytest.raises(ModelError, match="do not fit"):
        start_from(make_model("vit-tiny", 0, hidden_size=32), found)
    with pytest.raises(ModelError, match="do not fit"):
        start_from(make_model("bert-tiny", 0), found)


def test_words_start_a_classifier() -> None:
    words = make_model("bert-tiny", 0, num_labels=0)
    state = Backbones().keep(CONFIG, 0, words)
    start_from(make_model("bert-tiny", 1, num_labels=3), state)


def test_suites_name_their_pre_training() -> None:
    fine_tuned = [config for config in suite("paper", 5) if config.pretrain]
    assert {config.pretrain_compress == "none" for config in fine_tuned} == {True, False}
    assert all(config.seeds == 5 for config in fine_tuned)
    first = suite("paper", 5)[:6]
    assert {(config.tp, config.pp) for config in first} == {(4, 1), (1, 4)}
    assert {config.task for config in first} == {"digits-high", "digits"}
