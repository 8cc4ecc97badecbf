"""Tests that need vLLM: run by ``make test-vllm`` in an environment of their own, passed over where there is none."""

from __future__ import annotations

import importlib.util
import os

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}.items():
    os.environ.setdefault(name, value)

collect_ignore_glob = [] if importlib.util.find_spec("vllm") is not None else ["test_*.py"]
