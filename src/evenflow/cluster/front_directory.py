"""The directory of a deployment, as a front reaches it."""

from __future__ import annotations

from typing import Protocol

from evenflow.cluster.adapter_table import AdapterEntry, AdapterTable
from evenflow.cluster.directory import FrontWord
from evenflow.cluster.minute_log import Charges


class FrontDirectory(Protocol):
    """The directory, as a front reaches it. Raises ConnectionError while it is away."""

    async def front_speaks(self, table_version: int, charges: Charges, number: int) -> FrontWord:
        """See Directory.front_speaks. Raises ConfigError for another version of EvenFlow."""
        ...

    async def give(self, table: AdapterTable) -> None:
        """See Directory.give."""
        ...

    async def change(self, name: str, entry: AdapterEntry | None, known_version: int) -> AdapterTable | None:
        """See Directory.change."""
        ...


__all__ = ["FrontDirectory"]
