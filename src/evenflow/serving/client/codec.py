"""Messages and configuration as bytes, on both sides of the border to an engine process."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import msgspec

from evenflow.base.files import write_whole
from evenflow.serving.client.messages import FromEngine, ToEngine
from evenflow.serving.config.engine_config import EngineConfig

encoder = msgspec.msgpack.Encoder()
from_engine_decoder = msgspec.msgpack.Decoder(FromEngine)
to_engine_decoder = msgspec.msgpack.Decoder(ToEngine)


def write_config(folder: Path, config: EngineConfig) -> None:
    """Leave ``config`` in ``folder`` for a child process."""
    write_whole(folder / "config.json", json.dumps(asdict(config), default=str))


def read_config(folder: Path) -> EngineConfig:
    """Return the EngineConfig that the parent left in ``folder``. Raises ConfigError if it does not hold."""
    return EngineConfig(**json.loads((folder / "config.json").read_text()))
