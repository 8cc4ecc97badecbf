"""The environment of the engine process: thread settings that must be there before torch is imported.

Why a process of its own, and why these variables: docs/design/0001-engine-process.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from evenflow.serving.config.engine_config import EngineConfig


def usable_cores() -> int:
    """Cores that this process may run on (affinity respected)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_cache_dir(environment: Mapping[str, str]) -> Path:
    """Folder for compiled kernels: one per Python version, below the user's cache folder."""
    return _cache_root(environment) / f"numba-py{sys.version_info.major}{sys.version_info.minor}"


def default_adapter_cache(environment: Mapping[str, str]) -> Path:
    """Folder for converted adapters, beside the compiled kernels."""
    return _cache_root(environment) / "adapters"


def engine_environment(config: EngineConfig, inherited: Mapping[str, str]) -> dict[str, str]:
    """``inherited`` plus what the engine needs. A variable that the user has set is left alone."""
    threads = str(max(1, (config.num_threads or usable_cores()) // config.tensor_parallel))
    cache_dir = config.cache_dir or Path(inherited.get("NUMBA_CACHE_DIR") or default_cache_dir(inherited))
    wanted = {
        "OMP_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
        "NUMBA_THREADING_LAYER": "omp",
        "OMP_WAIT_POLICY": "passive",
        # Some 20 us: longer than the gap between two kernels of a step, far shorter than a scheduler's quantum.
        "GOMP_SPINCOUNT": "2000",
        "KMP_BLOCKTIME": "0",
        "MALLOC_ARENA_MAX": "2",
        # oneDNN's compiled products, 0.7 MB each, in its own cache and in torch's before it; 1024 without these.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "512",
        "LRU_CACHE_CAPACITY": "512",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment = {**wanted, **inherited}
    environment["NUMBA_CACHE_DIR"] = str(cache_dir)
    if config.num_threads is not None:
        environment |= {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
    return environment


def _cache_root(environment: Mapping[str, str]) -> Path:
    root = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME", "/tmp")) / ".cache")
    return Path(root) / "evenflow"
