from __future__ import annotations

from pathlib import Path

import pytest

from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_adapter(tiny_model, tmp_path_factory) -> Path:
    from evenflow.serving.models.model_config import load_config

    return make_adapter(tmp_path_factory.mktemp("adapters") / "neighbour", load_config(tiny_model), lora_rank=4, seed=7)
