"""The server's side of accounts: adds up in memory, and a thread that writes once a second beside the event loop."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable

from evenflow.accounts.account_row import HOUR_S, AccountKey, Sums, hour_of
from evenflow.accounts.spending import READ_EVERY_S, Spending, end_of_month
from evenflow.accounts.store import AccountStore, StoreAway
from evenflow.base.errors import ConfigError

log = logging.getLogger("evenflow.accounts")

FLUSH_S = 1.0
MOST_ROWS = 100_000
"""Rows that wait for a store that is away; beyond them clients are added up under ``OVERFLOW``."""
OVERFLOW = "(others, while the accounts were away)"
PRUNE_EVERY_S = 3600.0
DAY_S = 86_400.0
RUN_DAYS = 60
"""So long the number of a server's last batch is kept: far longer than it could still be sent again."""


class AccountBook:
    """Takes what ends, from any thread, and writes it through ``open_store`` in batches that are never added twice.

    A batch keeps its number until the store has taken it: what was written just before a crash or a lost connection is not
    written again. At most what ended within the last second is lost when the process is killed.
    """

    def __init__(
        self,
        open_store: Callable[[], AccountStore],
        unix_time: Callable[[], float],
        *,
        retention_days: int | None = None,
        spending: Spending | None = None,
        run: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = open_store
        self._unix_time = unix_time
        self._monotonic = monotonic
        self._began_unix_s, self._began_s = unix_time(), monotonic()
        self._retention_days = retention_days
        self._spending = spending
        self._since_read_s = READ_EVERY_S
        self._run = run or uuid.uuid4().hex
        self._lock = threading.Lock()
        self._gathered: dict[AccountKey, Sums] = {}
        self._batch: dict[AccountKey, Sums] = {}
        """What is being written; it stays the same until the store has it."""
        self._sequence = 0
        self._store: AccountStore | None = None
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self.num_failures = 0
        """Batches that could not be written at the first try."""
        self.num_overflowed = 0
        """Completions whose client was not kept, because the store was away for too long."""
        self._is_away = False
        self._since_prune_s = PRUNE_EVERY_S

    @property
    def is_away(self) -> bool:
        """Whether the store could not be written when that was last tried."""
        return self._is_away

    @property
    def num_waiting(self) -> int:
        """Rows that are not written yet."""
        with self._lock:
            return len(self._gathered) + len(self._batch)

    def add(self, client: str, adapter: str, outcome: str, sums: Sums) -> None:
        """Take completions that ended now."""
        key = AccountKey(hour_of(self._unix_time()), client, adapter, outcome)
        with self._lock:
            if key not in self._gathered and len(self._gathered) >= MOST_ROWS:
                self.num_overflowed += sums.requests
                key = AccountKey(key.hour_s, OVERFLOW, adapter if len(self._gathered) < 2 * MOST_ROWS else "", outcome)
            self._gathered.setdefault(key, Sums()).add(sums)
            if self._spending is not None:
                self._spending.took(key.hour_s, client, adapter, sums)

    def start(self) -> None:
        """Open the store, so that what can never work is said at once, and start to write. Raises ConfigError."""
        try:
            self._store = self._open()
            self.read_spending()
        except StoreAway as error:
            self._note(error)
        self._thread = threading.Thread(target=self._write_on, name="accounts", daemon=True)
        self._thread.start()

    def flush(self) -> bool:
        """Write what has gathered; False if the store is away, and then nothing is lost."""
        with self._lock:
            if not self._batch:
                self._batch, self._gathered = self._gathered, {}
                self._sequence += bool(self._batch)
        if not self._batch:
            return True
        try:
            if self._store is None:
                self._store = self._open()
            self._store.add(self._run, self._sequence, self._batch)
        except (StoreAway, ConfigError) as error:
            self._note(error)
            return False
        if self._is_away:
            log.warning("accounts are written again")
            self._is_away = False
        with self._lock:
            self._batch = {}
        return True

    def read_spending(self) -> None:
        """Ask the store what was used this month; what is not written yet is counted beside it. Raises StoreAway.

        Only the thread that writes may call it once that runs: nothing may be written between the question and the answer.
        """
        if self._spending is None or self._store is None or self._batch:
            return
        self._since_read_s = 0.0
        month_s = self._spending.month_s
        stored = self._store.totals(month_s, end_of_month(month_s))
        with self._lock:
            unwritten = [(key.hour_s, key.client, key.adapter, sums) for key, sums in self._gathered.items()]
            self._spending.replace(month_s, stored, unwritten)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write the rest and end."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.error("accounts of the last moments could not be written in time")

    def _write_on(self) -> None:
        while not self._ending.wait(FLUSH_S):
            try:
                self.flush()
                self._read_again()
                self._prune()
            except Exception as error:  # whatever it is, the next second tries again, and the metrics say so
                self._note(error)
        try:
            while self.num_waiting and self.flush():
                pass
        except Exception as error:
            self._note(error)
        if self.num_waiting:
            log.error("%d rows of accounts are lost: the store is away, and the server ends", self.num_waiting)
        if self._store is not None:
            self._store.close()

    def _read_again(self) -> None:
        self._since_read_s += FLUSH_S
        spending = self._spending
        if spending is None or self._is_away or (spending.is_known and self._since_read_s < READ_EVERY_S):
            return
        try:
            self.read_spending()
        except StoreAway as error:
            self._note(error)

    def _prune(self) -> None:
        self._since_prune_s += FLUSH_S
        if self._store is None or self._is_away or self._since_prune_s < PRUNE_EVERY_S:
            return
        self._since_prune_s = 0.0
        hour_s = hour_of(self._plausible_now_s())
        try:
            self._store.forget_runs(hour_s - RUN_DAYS * 24 * HOUR_S)
            if self._retention_days is not None:
                self._store.prune(hour_s - self._retention_days * 24 * HOUR_S)
        except StoreAway as error:
            self._note(error)

    def _plausible_now_s(self) -> float:
        """The time, but no more than a day ahead of what has passed since the start: a clock that jumps forgets no history."""
        return min(self._unix_time(), self._began_unix_s + (self._monotonic() - self._began_s) + DAY_S)

    def _note(self, error: Exception) -> None:
        self.num_failures += 1
        if not self._is_away:
            log.error("accounts cannot be written now and are kept in memory: %s", error)
            self._is_away = True
