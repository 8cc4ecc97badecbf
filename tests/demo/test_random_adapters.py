"""Random adapters: PEFT folders that are written fast and are all different."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from evenflow.demo.assets import random_adapter


def _digest(folder) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path):
    digests = {_digest(random_adapter(tmp_path / f"{seed}", seed)) for seed in range(60)}
    assert len(digests) == 60
    assert _digest(random_adapter(tmp_path / "again", 7)) == _digest(tmp_path / "7")
    assert _digest(random_adapter(tmp_path / "wider", 7, lora_rank=8)) not in digests


@pytest.mark.parametrize("modules", [("q_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj", "o_proj", "k_proj")])
def test_shapes_are_those_of_the_embedded_model(tmp_path, modules):
    folder = random_adapter(tmp_path / "a", 1, lora_rank=3, target_modules=modules)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == 3
    assert config["target_modules"] == list(modules)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 4 * len(modules) * 2
    for name, values in tensors.items():
        assert values.shape[0 if "lora_A" in name else 1] == 3
        assert np.isfinite(values.astype(np.float32)).all()
        assert np.abs(values).max() > 0
