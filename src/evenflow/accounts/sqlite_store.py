"""Accounts in one SQLite file with a write-ahead log: readers never wait for the writer, and a kill loses no whole batch."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from evenflow.accounts.account_row import KEY_NAMES, SUM_NAMES, AccountKey, Sums
from evenflow.accounts.store import StoreAway
from evenflow.base.errors import ConfigError

VERSION = 2
"""1: batches had no hour."""
BUSY_S = 5.0
"""Several servers may write into one file: each waits so long for its turn."""
_SUMS = ", ".join(f"{name} {'REAL' if name == 'service' or name.endswith('_s') else 'INTEGER'} NOT NULL" for name in SUM_NAMES)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS usage (
    hour_s INTEGER NOT NULL, client TEXT NOT NULL, adapter TEXT NOT NULL, outcome TEXT NOT NULL, {_SUMS},
    PRIMARY KEY (hour_s, client, adapter, outcome)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
    run TEXT PRIMARY KEY, sequence INTEGER NOT NULL, hour_s INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""
_UPSERT = (
    f"INSERT INTO usage ({', '.join((*KEY_NAMES, *SUM_NAMES))}) "
    f"VALUES ({', '.join('?' * (len(KEY_NAMES) + len(SUM_NAMES)))}) "
    f"ON CONFLICT ({', '.join(KEY_NAMES)}) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in SUM_NAMES)
)


class SQLiteStore:
    """``AccountStore`` in the file ``path``, which is made with its folder. Raises ConfigError if the file is another's."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            tables = {name for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if version > VERSION or (version == 0 and tables):
                raise ConfigError(f"{path} is no file of accounts of this version")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            if version == 1:
                added = "ALTER TABLE batches ADD COLUMN hour_s INTEGER NOT NULL DEFAULT 0"
                self._database.executescript(f"BEGIN IMMEDIATE; {added}; PRAGMA user_version = {VERSION}; COMMIT;")
            if version == 0:
                self._database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error):
                raise ConfigError(f"{path} is no file of accounts: {error}") from None
            raise StoreAway(f"{path}: {error}") from error
        except OSError as error:
            raise ConfigError(f"accounts cannot be kept at {path}: {error}") from None

    def add(self, run: str, sequence: int, rows: Mapping[AccountKey, Sums]) -> None:
        """See ``AccountStore``. Batches of a run come in the order of their numbers, so the last one tells what is there."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                last = self._database.execute("SELECT sequence FROM batches WHERE run = ?", (run,)).fetchone()
                if last is None or last[0] < sequence:
                    self._database.executemany(_UPSERT, [_values(key, sums) for key, sums in rows.items()])
                    hour_s = max(key.hour_s for key in rows)
                    self._database.execute("INSERT OR REPLACE INTO batches VALUES (?, ?, ?)", (run, sequence, hour_s))
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreAway(str(error)) from error

    def read(self, since_s: int, until_s: int, client: str | None = None) -> Iterator[tuple[AccountKey, Sums]]:
        """See ``AccountStore``."""
        where, values = "hour_s >= ? AND hour_s < ?", [since_s, until_s]
        columns = ", ".join((*KEY_NAMES, *SUM_NAMES))
        more = () if client is None else (client,)
        question = (
            f"SELECT {columns} FROM usage WHERE {where}{'' if client is None else ' AND client = ?'} ORDER BY hour_s, client"
        )
        try:
            for row in self._database.execute(question, (*values, *more)).fetchall():
                yield AccountKey(*row[: len(KEY_NAMES)]), Sums(*row[len(KEY_NAMES) :])
        except sqlite3.Error as error:
            raise StoreAway(str(error)) from error

    def totals(self, since_s: int, until_s: int) -> list[tuple[str, str, Sums]]:
        """See ``AccountStore``."""
        sums = ", ".join(f"SUM({name})" for name in SUM_NAMES)
        question = f"SELECT client, adapter, {sums} FROM usage WHERE hour_s >= ? AND hour_s < ? GROUP BY client, adapter"
        try:
            return [(row[0], row[1], Sums(*row[2:])) for row in self._database.execute(question, (since_s, until_s))]
        except sqlite3.Error as error:
            raise StoreAway(str(error)) from error

    def forget_runs(self, before_s: int) -> int:
        """See ``AccountStore``."""
        try:
            return self._database.execute("DELETE FROM batches WHERE hour_s < ?", (before_s,)).rowcount
        except sqlite3.Error as error:
            raise StoreAway(str(error)) from error

    def prune(self, before_s: int) -> int:
        """See ``AccountStore``."""
        try:
            return self._database.execute("DELETE FROM usage WHERE hour_s < ?", (before_s,)).rowcount
        except sqlite3.Error as error:
            raise StoreAway(str(error)) from error

    def close(self) -> None:
        """See ``AccountStore``."""
        self._database.close()


def _values(key: AccountKey, sums: Sums) -> tuple[object, ...]:
    return (*(getattr(key, name) for name in KEY_NAMES), *(getattr(sums, name) for name in SUM_NAMES))
