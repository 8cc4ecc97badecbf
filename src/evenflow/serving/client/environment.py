"""The environment of the engine process: thread settings that must be there before torch is imported.

Why a process of its own, and why these variables: docs/design/0001-engine-process.md.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from evenflow.base.errors import ConfigError
from evenflow.serving.config.engine_config import EngineConfig


def usable_cores() -> int:
    """Cores that this process may run on (affinity respected)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_cache_dir(environment: Mapping[str, str]) -> Path:
    """Folder for compiled kernels: one per Python version, below the user's cache folder.

    Without a home it lies in the system's temporary folder under the user's number: see ``make_private``.
    """
    return _cache_root(environment) / f"numba-py{sys.version_info.major}{sys.version_info.minor}"


def default_adapter_cache(environment: Mapping[str, str]) -> Path:
    """Folder for converted adapters, beside the compiled kernels."""
    return _cache_root(environment) / "adapters"


def kernel_cache(config: EngineConfig, environment: Mapping[str, str]) -> Path:
    """Folder for compiled kernels: the one that is configured, numba's own variable's, or the default."""
    return config.cache_dir or Path(environment.get("NUMBA_CACHE_DIR") or default_cache_dir(environment))


def make_private(folder: Path, option: str) -> None:
    """Make ``folder``, for this user alone if it is new. ``option``: the flag that names another one.

    Compiled kernels are kept as pickles, and whoever can write one decides what this process runs. So raises ConfigError
    for a folder that another user (but root) owns or may write to, or that lies in one where they may put another in its
    place; and for one that cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        real = folder.resolve()
        for place in (real, *real.parents):
            status = place.stat()
            is_sticky = bool(status.st_mode & stat.S_ISVTX) and place != real
            if status.st_uid not in (0, os.geteuid()) or (status.st_mode & stat.S_IWOTH and not is_sticky):
                whose = "others may write to" if status.st_uid in (0, os.geteuid()) else "another user owns"
                raise ConfigError(f"{folder} cannot be used, because {whose} {place}; name a folder of your own ({option})")
        if not os.access(real, os.W_OK | os.X_OK):
            raise PermissionError(13, "it is not writable")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used: {error.strerror}; name another folder ({option})") from None


def engine_environment(config: EngineConfig, inherited: Mapping[str, str]) -> dict[str, str]:
    """``inherited`` plus what the engine needs. A variable that the user has set is left alone."""
    threads = str(max(1, (config.num_threads or usable_cores()) // config.tensor_parallel))
    cache_dir = kernel_cache(config, inherited)
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
    if root := environment.get("XDG_CACHE_HOME"):
        return Path(root) / "evenflow"
    if home := environment.get("HOME"):
        return Path(home) / ".cache" / "evenflow"
    return Path(tempfile.gettempdir()) / f"evenflow-{os.getuid()}"
