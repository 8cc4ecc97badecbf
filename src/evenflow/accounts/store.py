"""Where rows are kept: the protocol, and the one that a text names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from evenflow.accounts.account_row import AccountKey, Sums
from evenflow.base.errors import ConfigError


class AccountStore(Protocol):
    """Used by one thread. Raises StoreAway for what may be well again later."""

    def add(self, run: str, sequence: int, rows: Mapping[AccountKey, Sums]) -> None:
        """Add ``rows`` in one transaction, unless a batch of that run and number was added before."""
        ...

    def read(self, since_s: int, until_s: int, client: str | None = None) -> Iterator[tuple[AccountKey, Sums]]:
        """Rows of hours that begin in [since, until), of one client or of all."""
        ...

    def prune(self, before_s: int) -> int:
        """Forget hours that began before a moment; returns how many rows went."""
        ...

    def close(self) -> None:
        """Give back what is open."""
        ...


class StoreAway(Exception):
    """The database cannot be reached or written just now."""


def open_store(where: str, *, must_exist: bool = False) -> AccountStore:
    """Open a file (SQLite) or a ``postgresql://`` address. Raises ConfigError for what can never work, StoreAway else."""
    if where.startswith(("postgresql://", "postgres://")):
        from evenflow.accounts.postgres_store import PostgresStore

        return PostgresStore(where)
    if "://" in where:
        raise ConfigError(f"accounts {where.split('://')[0]}://...; allowed: the path of a file, or postgresql://...")
    from evenflow.accounts.sqlite_store import SQLiteStore

    path = Path(where).expanduser()
    if must_exist and not path.is_file():
        raise ConfigError(f"there are no accounts at {path}")
    return SQLiteStore(path)


def added_up(rows: Iterable[tuple[AccountKey, Sums]]) -> dict[AccountKey, Sums]:
    """Rows of equal keys in one."""
    found: dict[AccountKey, Sums] = {}
    for key, sums in rows:
        found.setdefault(key, Sums()).add(sums)
    return found
