"""The live server of the server's own tests, for what deployments ask of it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "serving" / "server"))

import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer

from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig


@pytest.fixture(scope="module")
def live():
    app = create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(served_model_names=("base",)), {})
    with LiveServer(app) as server:
        yield server
