"""Sizes of memory: reading "2GiB", and how much of the machine is free for us."""

from __future__ import annotations

import re
from pathlib import Path

from evenflow.base.errors import ConfigError

_UNITS = {"": 1, "b": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {unit + "b": size for unit, size in _UNITS.items() if unit in "kmgt" and unit}
_UNITS |= {unit + "ib": 1024 ** (i + 1) for i, unit in enumerate("kmgt")}


def parse_size(text: str | int) -> int:
    """Bytes of "2GiB", "512 MB", "65536". Raises ConfigError for anything else."""
    if isinstance(text, int):
        size = text
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
        if match is None or match.group(2).lower() not in _UNITS:
            raise ConfigError(f"size {text!r} is not understood; write for example 2GiB, 512MiB, 1.5GB or a number of bytes")
        size = int(float(match.group(1)) * _UNITS[match.group(2).lower()])
    if size <= 0:
        raise ConfigError(f"size {text!r} must be above zero")
    return size


def format_size(size_bytes: float) -> str:
    """Human form in binary units: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.4g} TiB"


def total_memory_bytes(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of the machine's memory, or of a cgroup's limit if that is less."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            total = min(total, int((cgroup_root / name).read_text()))
        except (OSError, ValueError):  # no such cgroup version, or "max"
            continue
    return total


def free_memory_bytes(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still use: available memory, or less if a cgroup (a container's limit) says so."""
    import psutil

    free = int(psutil.virtual_memory().available)
    pairs = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    for limit_name, usage_name in pairs:
        try:
            limit = int((cgroup_root / limit_name).read_text())
            usage = int((cgroup_root / usage_name).read_text())
        except (OSError, ValueError):  # no such cgroup version, or "max"
            continue
        free = min(free, max(limit - usage, 0))
    return free
