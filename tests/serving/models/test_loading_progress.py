"""Loading and quantising tell how far they have come."""

from __future__ import annotations

import torch

from evenflow.demo.assets import model_path
from evenflow.serving.models.load import load_model
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.quantised_folder import write_quantised


def test_loading_and_quantising_tell_how_far_they_are(tmp_path):
    told: list[tuple[str, float, float]] = []
    config = load_config(model_path())
    load_model(model_path(), config, torch.float32, tell=lambda *step: told.append(step))
    layers = config.shape.num_layers
    assert told == [("loading weights", done, layers) for done in range(layers + 1)]
    told.clear()
    load_model(model_path(), config, torch.float32, quantization="int8", tell=lambda *step: told.append(step))
    assert told[-1] == ("quantising weights", layers, layers)
    told.clear()
    write_quantised(model_path(), tmp_path / "out", "int8", lambda *step: told.append(step))
    assert {what for what, _, _ in told} == {"quantising"}
    assert told[-1][1] == told[-1][2]
    assert [done for _, done, _ in told[:-1]] == sorted(done for _, done, _ in told[:-1])
