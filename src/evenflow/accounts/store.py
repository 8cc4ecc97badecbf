"""Where rows are kept: what a database of accounts can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from evenflow.accounts.account_row import AccountKey, Sums


class AccountStore(Protocol):
    """Used by one thread. Raises StoreAway for what may be well again later."""

    def add(self, run: str, sequence: int, rows: Mapping[AccountKey, Sums]) -> None:
        """Add ``rows`` in one transaction, unless a batch of that run and number was added before."""
        ...

    def read(self, since_s: int, until_s: int, client: str | None = None) -> Iterator[tuple[AccountKey, Sums]]:
        """Rows of hours that begin in [since, until), of one client or of all."""
        ...

    def totals(self, since_s: int, until_s: int) -> list[tuple[str, str, Sums]]:
        """(client, adapter, sums) of all hours that begin in [since, until), added up where the rows are."""
        ...

    def forget_runs(self, before_s: int) -> int:
        """Forget the batches' numbers of servers whose last one was of an hour before a moment; returns how many went."""
        ...

    def prune(self, before_s: int) -> int:
        """Forget hours that began before a moment; returns how many rows went."""
        ...

    def close(self) -> None:
        """Give back what is open."""
        ...


class StoreAway(Exception):
    """The database cannot be reached or written just now."""
