"""One live server for the tests that only need one to talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer, make_adapter

from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """An open server (no keys) with the base model "base" and the adapters a and b."""
    folder: Path = tmp_path_factory.mktemp("adapters")
    adapters = {name: make_adapter(folder, name, name) for name in ("a", "b")}
    app = create_app(
        FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(served_model_names=("base", "alias")), adapters
    )
    with LiveServer(app) as server:
        yield server
