"""What the server tells its accounts."""

from __future__ import annotations

from evenflow.accounts.account_book import AccountBook
from evenflow.accounts.account_row import OUTCOMES, Sums


class AccountWatcher:
    """Hands what ended to an ``AccountBook``; a ``Watcher``."""

    def __init__(self, book: AccountBook) -> None:
        self._book = book

    def ended(self, client: str, adapter: str | None, outcome: str, sums: Sums) -> None:
        """See ``Watcher``."""
        self._book.add(client, adapter or "", outcome if outcome in OUTCOMES else "error", sums)
