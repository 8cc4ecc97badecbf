"""Accounts in PostgreSQL, for several servers and for whoever reports on them; needs psycopg (evenflow[postgres])."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evenflow.accounts.account_row import KEY_NAMES, SUM_NAMES, AccountKey, Sums
from evenflow.accounts.store import StoreAway
from evenflow.base.errors import ConfigError

CONNECT_S = 5
_TYPES = {name: "DOUBLE PRECISION" if name == "service" or name.endswith("_s") else "BIGINT" for name in SUM_NAMES}
_SUMS = ", ".join(f"{name} {kind} NOT NULL" for name, kind in _TYPES.items())
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS evenflow_usage (hour_s BIGINT NOT NULL, client TEXT NOT NULL, adapter TEXT NOT NULL, "
    f"outcome TEXT NOT NULL, {_SUMS}, PRIMARY KEY (hour_s, client, adapter, outcome))",
    "CREATE TABLE IF NOT EXISTS evenflow_batches (run TEXT PRIMARY KEY, sequence BIGINT NOT NULL)",
    "ALTER TABLE evenflow_batches ADD COLUMN IF NOT EXISTS hour_s BIGINT NOT NULL DEFAULT 0",
)
_UPSERT = (
    f"INSERT INTO evenflow_usage ({', '.join((*KEY_NAMES, *SUM_NAMES))}) "
    f"VALUES ({', '.join(['%s'] * (len(KEY_NAMES) + len(SUM_NAMES)))}) "
    f"ON CONFLICT ({', '.join(KEY_NAMES)}) DO UPDATE SET "
    + ", ".join(f"{name} = evenflow_usage.{name} + excluded.{name}" for name in SUM_NAMES)
)


class PostgresStore:
    """``AccountStore`` at a ``postgresql://`` address; connects when it is first used, and again after it was cut off."""

    def __init__(self, address: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise ConfigError("accounts in PostgreSQL need psycopg: pip install 'evenflow[postgres]'") from None
        self._psycopg = psycopg
        self._address = address
        self._connection: Any = None

    def add(self, run: str, sequence: int, rows: Mapping[AccountKey, Sums]) -> None:
        """See ``AccountStore``. The row of the run is locked first, so that a batch that is sent twice is added once."""
        with self._transaction() as cursor:
            cursor.execute("INSERT INTO evenflow_batches (run, sequence) VALUES (%s, -1) ON CONFLICT DO NOTHING", (run,))
            cursor.execute("SELECT sequence FROM evenflow_batches WHERE run = %s FOR UPDATE", (run,))
            if cursor.fetchone()[0] < sequence:
                # In one order everywhere: two servers that add to the same rows cannot wait for each other.
                values = [
                    (*(getattr(key, name) for name in KEY_NAMES), *(getattr(rows[key], name) for name in SUM_NAMES))
                    for key in sorted(rows)
                ]
                cursor.executemany(_UPSERT, values)
                hour_s = max(key.hour_s for key in rows)
                cursor.execute("UPDATE evenflow_batches SET sequence = %s, hour_s = %s WHERE run = %s", (sequence, hour_s, run))

    def read(self, since_s: int, until_s: int, client: str | None = None) -> Iterator[tuple[AccountKey, Sums]]:
        """See ``AccountStore``."""
        columns = ", ".join((*KEY_NAMES, *SUM_NAMES))
        more, values = ("", ()) if client is None else (" AND client = %s", (client,))
        with self._transaction() as cursor:
            cursor.execute(
                f"SELECT {columns} FROM evenflow_usage WHERE hour_s >= %s AND hour_s < %s{more} ORDER BY hour_s, client",
                (since_s, until_s, *values),
            )
            found = cursor.fetchall()
        for row in found:
            yield AccountKey(*row[: len(KEY_NAMES)]), Sums(*row[len(KEY_NAMES) :])

    def totals(self, since_s: int, until_s: int) -> list[tuple[str, str, Sums]]:
        """See ``AccountStore``."""
        # A sum of BIGINT is NUMERIC there, and comes as a Decimal.
        sums = ", ".join(f"SUM({name})::{_TYPES[name]}" for name in SUM_NAMES)
        with self._transaction() as cursor:
            cursor.execute(
                f"SELECT client, adapter, {sums} FROM evenflow_usage WHERE hour_s >= %s AND hour_s < %s "
                "GROUP BY client, adapter",
                (since_s, until_s),
            )
            return [(row[0], row[1], Sums(*row[2:])) for row in cursor.fetchall()]

    def forget_runs(self, before_s: int) -> int:
        """See ``AccountStore``."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM evenflow_batches WHERE hour_s < %s", (before_s,))
            return int(cursor.rowcount)

    def prune(self, before_s: int) -> int:
        """See ``AccountStore``."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM evenflow_usage WHERE hour_s < %s", (before_s,))
            return int(cursor.rowcount)

    def close(self) -> None:
        """See ``AccountStore``."""
        if self._connection is not None:
            self._connection.close()

    def _transaction(self) -> _Transaction:
        return _Transaction(self)

    def _connected(self) -> Any:
        if self._connection is None or self._connection.closed:
            self._connection = self._psycopg.connect(self._address, connect_timeout=CONNECT_S)
            with self._connection.transaction():
                for statement in _SCHEMA:
                    self._connection.execute(statement)
        return self._connection


class _Transaction:
    """A cursor inside one transaction; what the database raises becomes StoreAway, and the connection is given up."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    def __enter__(self) -> Any:
        store = self._store
        try:
            connection = store._connected()
            self._block = connection.transaction()
            self._block.__enter__()
            return connection.cursor()
        except store._psycopg.Error as error:
            store.close()
            raise StoreAway(str(error)) from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool | None:
        store = self._store
        try:
            self._block.__exit__(kind, error, trace)
        except store._psycopg.Error as raised:
            store.close()
            raise StoreAway(str(raised)) from raised
        if isinstance(error, store._psycopg.Error):
            store.close()
            raise StoreAway(str(error)) from error
        return None
