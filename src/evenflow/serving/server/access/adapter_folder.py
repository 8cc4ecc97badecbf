"""The folder whose sub-folders are adapters by name. Never walked for a request: a name costs a few system calls.

A name is a sub-folder, or, as on a hub, a sub-folder of one: ``org/name``. Deeper ones can be asked for, but are not
listed. One that appears can be asked for at once, one that disappears cannot be any more. The listing is kept and brought
up to date when a folder's own time stamp says that names came or went; only those are looked into. What is not served is
passed over with its reason, and logged once.

A first sub-folder may be a link to anywhere inside the folder, since only whoever owns the folder can make it. What lies
deeper may be a stranger's, and its links must stay inside its first sub-folder (``boundary``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("evenflow.server")

CONFIG_FILE = "adapter_config.json"
_UNSETTLED_NS = 2_000_000_000
"""A folder changed less than this ago may change again within one tick of its time stamp."""
_MOST_TOLD = 1000
_MOST_PARTS = 6
"""Of a name. Names of more than two are found, but not listed."""


def is_folder_name(name: str) -> bool:
    """True if a sub-folder of that name can be an adapter: one or more parts, printable, of any script, not hidden."""
    parts = name.split("/")
    return len(parts) <= _MOST_PARTS and all(map(_is_part, parts))


def _is_part(part: str) -> bool:
    return (
        0 < len(part) <= 255 and part.isprintable() and part == part.strip() and not part.startswith(".") and "\\" not in part
    )


class AdapterFolder:
    """``unix_time_ns``: the clock that the files' time stamps follow."""

    def __init__(self, folder: Path, unix_time_ns: Callable[[], int]) -> None:
        self._folder = folder.resolve()
        self._unix_time_ns = unix_time_ns
        self._seen: dict[str, int] = {}
        """When each adapter was first seen (Unix time, seconds)."""
        self._listings: dict[str, tuple[int, list[str]]] = {}
        """Time stamp and sub-folders of the folder ("") and of those that hold further names."""
        self.passed_over: dict[str, str] = {}
        """Sub-folders that are not served, and why; as of the last listing. The first thousand."""

    def find(self, name: str) -> Path | None:
        """The sub-folder of that very name, if it holds an adapter and lies inside the folder."""
        return self._folder / name if self._fault(name) is None else None

    def boundary(self, name: str) -> Path:
        """The folder that no link of the adapter ``name`` may lead out of."""
        return Path(os.path.realpath(self._folder / name.partition("/")[0]))

    def has(self, name: str) -> bool:
        """True if the sub-folder from which ``name`` was once loaded is still there. One system call."""
        return os.path.exists(self._folder / name / CONFIG_FILE)

    def names(self) -> dict[str, int]:
        """Every adapter there is, and when it was first seen (Unix time, seconds). Blocks on the disk after a change."""
        seen: dict[str, int] = {}
        passed_over: dict[str, str] = {}
        for first in self._list(""):
            fault = self._look(first, seen)
            if fault is None:
                continue
            faults = {name: self._look(name, seen) for name in self._names_below(first)}
            if None in faults.values():
                passed_over |= {name: inner for name, inner in faults.items() if inner is not None}
            else:
                passed_over[first] = fault
        self._seen = seen
        firsts = {"", *passed_over, *(name.partition("/")[0] for name in seen if "/" in name)}
        self._listings = {first: listing for first, listing in self._listings.items() if first in firsts}
        self._tell(passed_over)
        return dict(seen)

    def _look(self, name: str, seen: dict[str, int]) -> str | None:
        """Note ``name`` as seen, or return why it is no adapter. What was seen before is not looked into again."""
        if name not in self._seen and (fault := self._fault(name)) is not None:
            return fault
        seen[name] = self._seen.get(name, self._unix_time_ns() // 1_000_000_000)
        return None

    def _fault(self, name: str) -> str | None:
        """Why the sub-folder ``name`` is not served; None if it is."""
        if not is_folder_name(name):
            return "its name is not allowed: at most six parts, printable, not hidden, no blanks around them"
        folder, boundary = self._folder / name, self.boundary(name)
        if self._folder not in boundary.parents:  # os.path.realpath: Path.resolve raises at a loop of links
            return "it is a link that leads out of the adapter folder"
        if not Path(os.path.realpath(folder)).is_relative_to(boundary):
            return f"it is a link that leads out of {name.partition('/')[0]}"
        if not os.path.isfile(folder / CONFIG_FILE):
            return f"its {CONFIG_FILE} is " + ("a broken link" if os.path.islink(folder / CONFIG_FILE) else "missing")
        return None

    def _names_below(self, first: str) -> list[str]:
        is_inside = _is_part(first) and self._folder in self.boundary(first).parents
        return [f"{first}/{second}" for second in self._list(first)] if is_inside else []

    def _list(self, first: str) -> list[str]:
        """Names of the sub-folders of a folder, read again if its time stamp says that it may have changed."""
        folder = self._folder / first
        try:
            changed_ns = folder.stat().st_mtime_ns
            if first not in self._listings or self._listings[first][0] != changed_ns:
                with os.scandir(folder) as entries:
                    names = [entry.name for entry in entries if not entry.name.startswith(".") and _may_be_folder(entry)]
                # A name that comes within the same tick would not show in the time stamp: then read again next time.
                has_settled = self._unix_time_ns() - changed_ns > _UNSETTLED_NS
                self._listings[first] = changed_ns if has_settled else -1, names
        except OSError:
            return []
        return self._listings[first][1]

    def _tell(self, passed_over: dict[str, str]) -> None:
        for name, reason in list(passed_over.items())[:_MOST_TOLD]:
            if self.passed_over.get(name) != reason:
                log.warning("the adapter folder holds %r, which is passed over: %s", name, reason)
        self.passed_over = dict(list(passed_over.items())[:_MOST_TOLD])


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() or entry.is_dir()


__all__ = ["AdapterFolder", "is_folder_name"]
