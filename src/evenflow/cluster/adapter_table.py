"""Which adapters a deployment has: what every replica should have registered, as a value with a version.

The table outlives any process: whoever holds a newer one than the directory gives it back, so a directory that was lost is
filled again by the first front or replica that speaks to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """One adapter by name."""

    path: str
    boundary: str = ""
    is_pinned: bool = False
    revision: int = 0
    """Grows when the weights under the name are replaced."""
    parts: tuple[tuple[str, float], ...] = ()
    """Of a weighted sum of other adapters of the table, (name, weight); ``path`` is empty then."""


@dataclass(frozen=True, slots=True)
class AdapterTable:
    """All of them. ``version`` grows with every change; 0: nothing was ever changed."""

    version: int = 0
    entries: Mapping[str, AdapterEntry] = field(default_factory=dict)

    def changed(self, name: str, entry: AdapterEntry | None) -> AdapterTable:
        """With ``entry`` under ``name``, or without that name for None. The same table if nothing changes."""
        if self.entries.get(name) == entry:
            return self
        entries = {key: value for key, value in self.entries.items() if key != name}
        if entry is not None:
            entries[name] = entry
        return AdapterTable(self.version + 1, entries)


@dataclass(frozen=True, slots=True)
class TableChange:
    """What has to be done to come from one table to another."""

    unload: tuple[str, ...]
    load: Mapping[str, AdapterEntry]
    replace: Mapping[str, AdapterEntry]
    pin: Mapping[str, bool]


def change_between(before: AdapterTable, after: AdapterTable) -> TableChange:
    """The smallest change; pins of adapters that are loaded or replaced are in ``pin``, if they are to be pinned."""
    load = {name: entry for name, entry in after.entries.items() if name not in before.entries}
    replace = {
        name: entry
        for name, entry in after.entries.items()
        if name in before.entries and (entry.revision, entry.path) != (before.entries[name].revision, before.entries[name].path)
    }
    pin = {
        name: entry.is_pinned
        for name, entry in after.entries.items()
        if entry.is_pinned != (name in before.entries and name not in replace and before.entries[name].is_pinned)
    }
    return TableChange(tuple(name for name in before.entries if name not in after.entries), load, replace, pin)
