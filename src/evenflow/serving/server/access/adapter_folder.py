"""The folder whose sub-folders are adapters by name. Never walked for a request: a name costs a few system calls.

A sub-folder that appears can be asked for at once, one that disappears cannot be any more. The listing is kept and
brought up to date when the folder's own time stamp says that names came or went; only those are looked into.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

CONFIG_FILE = "adapter_config.json"
_UNSETTLED_NS = 2_000_000_000
"""A folder changed less than this ago may change again within one tick of its time stamp."""


def is_folder_name(name: str) -> bool:
    """True if a sub-folder of that name can be an adapter: printable, of any script, not hidden, one folder deep."""
    return (
        0 < len(name) <= 255
        and name.isprintable()
        and name == name.strip()
        and not name.startswith(".")
        and "/" not in name
        and "\\" not in name
    )


class AdapterFolder:
    """``unix_time_ns``: the clock that the files' time stamps follow."""

    def __init__(self, folder: Path, unix_time_ns: Callable[[], int]) -> None:
        self._folder = folder.resolve()
        self._unix_time_ns = unix_time_ns
        self._listed: dict[str, int | None] = {}
        """Every sub-folder of a fitting name: when it was first seen as an adapter, or None while it is none."""
        self._state_ns = -1

    def find(self, name: str) -> Path | None:
        """The sub-folder of that very name, if it holds an adapter and lies inside the folder."""
        if not is_folder_name(name):
            return None
        folder = self._folder / name
        is_inside = Path(os.path.realpath(folder)).parent == self._folder  # Path.resolve raises at a loop of links
        return folder if is_inside and (folder / CONFIG_FILE).is_file() else None

    def has(self, name: str) -> bool:
        """True if the sub-folder from which ``name`` was once loaded is still there. One system call."""
        return os.path.exists(self._folder / name / CONFIG_FILE)

    def names(self) -> dict[str, int]:
        """Every adapter there is, and when it was first seen (Unix time, seconds). Blocks on the disk after a change."""
        try:
            changed_ns = self._folder.stat().st_mtime_ns
            if changed_ns != self._state_ns:
                self._read_names()
                # A name that comes within the same tick would not show in the time stamp: then read again next time.
                self._state_ns = changed_ns if self._unix_time_ns() - changed_ns > _UNSETTLED_NS else -1
        except OSError:
            self._listed, self._state_ns = {}, -1
        for name in [name for name, seen_s in self._listed.items() if seen_s is None]:
            if self.find(name) is not None:  # its files came after its folder
                self._listed[name] = self._unix_time_ns() // 1_000_000_000
        return {name: seen_s for name, seen_s in self._listed.items() if seen_s is not None}

    def _read_names(self) -> None:
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries if is_folder_name(entry.name)]
        self._listed = {name: self._listed.get(name) for name in names}


__all__ = ["AdapterFolder", "is_folder_name"]
