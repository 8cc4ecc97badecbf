from __future__ import annotations

from pathlib import Path

import pytest

from evenflow.serving.core.shape import MODULES
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model

RANKS = {"r1": 1, "r3": 3, "r8": 8, "r64": 64}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_adapters(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """Ranks 1, 3, 8 and 64; all modules, attention only, q and v, rank patterns, rsLoRA, one layer."""
    from evenflow.serving.models.model_config import load_config

    config, root = load_config(tiny_model), tmp_path_factory.mktemp("adapters")
    settings = {
        "r1": {"lora_rank": 1, "target_modules": MODULES},
        "r3": {"lora_rank": 3, "target_modules": ("q_proj", "v_proj")},
        "r8": {"lora_rank": 8, "target_modules": ("gate_proj", "up_proj", "down_proj"), "use_rslora": True, "alpha": 4},
        "r64": {"lora_rank": 64, "target_modules": MODULES},
        "pattern": {"lora_rank": 4, "target_modules": MODULES, "rank_pattern": {"q_proj": 7, "down_proj": 2}},
        "one-layer": {"lora_rank": 8, "target_modules": ("o_proj", "k_proj"), "layers": [1]},
    }
    return {name: make_adapter(root / name, config, seed=i, **options) for i, (name, options) in enumerate(settings.items())}
