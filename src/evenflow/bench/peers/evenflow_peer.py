"""EvenFlow itself, as `evenflow serve` starts it: `evenflow`, `evenflow:int8`, `evenflow:int4`."""

from __future__ import annotations

import sys
from typing import Any

from evenflow.bench.peers.http_peer import HttpPeer, ServerCommand
from evenflow.bench.peers.peer import Setup

_BASE = "base"


class EvenFlowPeer(HttpPeer):
    """``form``: as for ``--quantization``; empty: none."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.name = f"evenflow:{form}" if form else "evenflow"
        self._form = form or "none"

    def command(self, setup: Setup) -> ServerCommand:
        """See HttpPeer."""
        words = [sys.executable, "-m", "evenflow", "serve", str(setup.model), "--served-model-name", _BASE]
        words += ["--quantization", self._form, "--max-num-seqs", str(setup.num_streams), "--threads", str(setup.num_threads)]
        words += ["--memory", "1GiB", "--max-model-len", str(setup.num_tokens + 8)]
        if setup.adapters:
            words += ["--adapters", *(f"{name}={path}" for name, path in setup.adapters.items())]
        return ServerCommand(words, "/ready")

    def fields(self, adapter: str | None) -> dict[str, Any]:
        """See HttpPeer."""
        return {"model": adapter or _BASE, "ignore_eos": True}
