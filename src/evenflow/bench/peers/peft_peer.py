"""transformers + peft as a peer: `peft` (bf16), and in float32 what all answers are checked against."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from evenflow.bench.peers.peer import PeerMissing, Setup
from evenflow.bench.peers.process_peer import ProcessPeer


class PeftPeer(ProcessPeer):
    """``form``: fp32, or bf16 (also if empty)."""

    def __init__(self, form: str) -> None:
        super().__init__()
        if form not in ("", "bf16", "fp32"):
            raise PeerMissing(f"peft is compared in bf16 and fp32, not {form}")
        self.name = f"peft:{form}" if form else "peft"
        self._dtype = "float32" if form == "fp32" else "bfloat16"

    def command(self, setup: Setup) -> tuple[Sequence[str], Mapping[str, str]]:
        """See ProcessPeer."""
        words = [sys.executable, "-m", "evenflow.bench.peers.transformers_peft", "--dtype", self._dtype, str(setup.model)]
        words += [f"{name}={path}" for name, path in setup.adapters.items()]
        return words, {"OMP_NUM_THREADS": str(setup.num_threads), "HF_HUB_OFFLINE": "1"}
