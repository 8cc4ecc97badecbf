"""The store of accounts that a text names."""

from __future__ import annotations

from pathlib import Path

from evenflow.accounts.store import AccountStore
from evenflow.base.errors import ConfigError


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
