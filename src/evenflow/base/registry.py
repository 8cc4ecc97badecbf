"""Names to plug-ins: one small registry for policies, kernels, compressors, workloads and the like.

A registry maps a name to a factory that is imported only when it is asked for, so that listing
names costs nothing and a floor without torch never loads torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from evenflow.base.errors import RegistryError


class Registry:
    """Lazy mapping from a name to ``"module:attribute"``."""

    def __init__(self, kind: str, entries: dict[str, str] | None = None) -> None:
        self._kind = kind
        self._entries = dict(entries or {})

    def add(self, name: str, target: str) -> None:
        """Register ``target`` ("module:attribute") under ``name``. Raises RegistryError if taken."""
        if name in self._entries:
            raise RegistryError(f"{self._kind} {name!r} is already registered as {self._entries[name]}")
        self._entries[name] = target

    def load(self, name: str) -> Any:
        """Import and return the plug-in called ``name``. Raises RegistryError listing the known names."""
        try:
            module, _, attribute = self._entries[name].partition(":")
        except KeyError:
            known = ", ".join(sorted(self._entries))
            raise RegistryError(f"unknown {self._kind} {name!r}; known: {known}") from None
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
