"""A real server process over the fake engine, for tests of signals: ``python server_child.py CLIENTS DRAIN_S``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer

from evenflow.base.errors import EvenFlowError
from evenflow.serving.server.run import run_server
from evenflow.serving.server.server_config import ServerConfig


class Fragile(FakeEngine):
    """Slow enough to be drained; a prompt "die" ends it."""

    def __init__(self) -> None:
        super().__init__(max_model_len=4096)
        self.step_s = 0.02

    def answer(self, submit):
        text = super().answer(submit)
        if text.endswith("die"):
            self.die()
        return text


if __name__ == "__main__":
    logging.basicConfig(level="INFO", stream=sys.stderr)
    clients, drain_s = sys.argv[1:3]
    config = ServerConfig(port=0, clients_file=Path(clients) if clients else None, drain_timeout_s=float(drain_s))
    adapters = {sys.argv[3]: Path(sys.argv[4])} if len(sys.argv) > 3 else {}
    try:
        run_server(Fragile, FakeTokenizer(), FakeTemplate(), config, adapters)
    except EvenFlowError as error:
        sys.exit(f"failed: {error}")
