"""What each client has used since the month began: read from the store at times, and kept beside it in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from evenflow.accounts.account_row import Sums
from evenflow.accounts.report import Price, start_of_month

READ_EVERY_S = 60.0
"""How often the store is asked: other servers may write into it too."""
MOST_MONTHS = 3
"""That are kept: a clock that jumps back finds its month again."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What one client has used in a month."""

    tokens: int = 0
    """Prompt, cached and output tokens."""
    cost: Decimal = Decimal(0)
    """By the prices; 0 without."""

    def plus(self, sums: Sums, price: Price | None) -> Spent:
        """Return the sum of it and of what ``sums`` hold."""
        cost = self.cost if price is None else self.cost + price.of(sums)
        return Spent(self.tokens + sums.prompt_tokens + sums.completion_tokens, cost)


class Spending:
    """Used from any thread. ``unix_time`` says which month it is; months are those of UTC."""

    def __init__(self, unix_time: Callable[[], float], prices: Mapping[str, Price] | None = None) -> None:
        self._unix_time = unix_time
        self._prices = prices
        self._lock = threading.Lock()
        self._by_month: dict[int, dict[str, Spent]] = {}
        self.is_known = False
        """False until the store has been read once: what was used before the server started is not counted yet."""

    @property
    def month_s(self) -> int:
        """The start of the current month, in seconds since 1970."""
        return start_of_month(self._unix_time())

    @property
    def renews_s(self) -> int:
        """The start of the next month."""
        return end_of_month(self.month_s)

    def seconds_left(self) -> float:
        """Until the next month begins."""
        return max(0.0, self.renews_s - self._unix_time())

    def took(self, hour_s: int, client: str, adapter: str, sums: Sums) -> None:
        """Completions ended in an hour."""
        with self._lock:
            self._add(start_of_month(hour_s), client, adapter, sums)

    def replace(
        self, month_s: int, stored: Iterable[tuple[str, str, Sums]], unwritten: Iterable[tuple[int, str, str, Sums]]
    ) -> None:
        """Count what the store holds of a month, by client and adapter, and (hour, client, adapter) that it does not yet."""
        with self._lock:
            self._by_month[month_s] = {}
            for client, adapter, sums in stored:
                self._add(month_s, client, adapter, sums)
            for hour_s, client, adapter, sums in unwritten:
                if start_of_month(hour_s) == month_s:
                    self._add(month_s, client, adapter, sums)
            self.is_known = True
            for old in sorted(self._by_month)[:-MOST_MONTHS]:
                del self._by_month[old]

    def of(self, client: str) -> Spent:
        """What the client has used this month."""
        with self._lock:
            return self._by_month.get(self.month_s, {}).get(client, Spent())

    def _add(self, month_s: int, client: str, adapter: str, sums: Sums) -> None:
        month = self._by_month.setdefault(month_s, {})
        price = None
        if self._prices is not None:
            price = self._prices.get(adapter) or self._prices.get("base")
        month[client] = month.get(client, Spent()).plus(sums, price)


def end_of_month(month_s: int) -> int:
    """The start of the month that follows the one that begins at ``month_s``."""
    begin = datetime.fromtimestamp(month_s, UTC)
    year, month = (begin.year + 1, 1) if begin.month == 12 else (begin.year, begin.month + 1)
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp())


__all__ = ["READ_EVERY_S", "Spending", "Spent", "end_of_month"]
