"""Accounts as people ask for them: since when, by what, with a price, as JSON or CSV."""

from __future__ import annotations

import csv
import io
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from evenflow.accounts.account_row import SUM_NAMES, AccountKey, Sums, hour_text
from evenflow.base.errors import ConfigError, InvalidRequest

DIMENSIONS = ("client", "adapter", "outcome", "hour", "day", "month")
MILLION = Decimal(1_000_000)
MOST_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Price:
    """Money for a million tokens."""

    prompt: Decimal = Decimal(0)
    cached: Decimal | None = None
    """None: cached tokens cost what prompt tokens cost."""
    completion: Decimal = Decimal(0)

    def of(self, sums: Sums) -> Decimal:
        """What the tokens of ``sums`` cost, exactly."""
        cached = self.prompt if self.cached is None else self.cached
        tokens = (sums.prompt_tokens - sums.cached_tokens) * self.prompt + sums.cached_tokens * cached
        return (tokens + sums.completion_tokens * self.completion) / MILLION


def read_prices(path: Path) -> Mapping[str, Price]:
    """Read ``[prices.NAME]`` tables with prompt, cached and completion, as texts or numbers.

    ``base`` is for the base model and for adapters that have none.

    Raises ConfigError, naming what is wrong.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal).get("prices", {})
        prices = {}
        for name, table in tables.items():
            if unknown := set(table) - {"prompt", "cached", "completion"}:
                raise ConfigError(f"{path}: prices.{name}.{min(unknown)}; allowed: prompt, cached, completion")
            values = {key: Decimal(str(value)) for key, value in table.items()}
            if any(not value.is_finite() or value < 0 for value in values.values()):
                raise ConfigError(f"{path}: prices.{name}; allowed: 0 or more for a million tokens")
            prices[name] = Price(**values)
        return prices
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, InvalidOperation, AttributeError, TypeError) as error:
        raise ConfigError(f"{path} is no file of prices: {error}") from None


def read_moment(text: str, name: str) -> int:
    """Seconds since 1970 of ``2026-11-01``, ``2026-11-01T13:00`` (UTC unless it says otherwise). Raises InvalidRequest."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"{name} is {text[:40]!r}; allowed: a date like 2026-11-01, or 2026-11-01T13:00", name) from None
    return int((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp())


def read_dimensions(text: str) -> tuple[str, ...]:
    """``client,day``. Raises InvalidRequest."""
    chosen = tuple(word.strip() for word in text.split(",") if word.strip())
    for word in chosen:
        if word not in DIMENSIONS:
            raise InvalidRequest(f"by is {text[:80]!r}; allowed: {', '.join(DIMENSIONS)}, by commas", "by")
    return tuple(dict.fromkeys(chosen))


def start_of_month(unix_s: float) -> int:
    """The start of the month (UTC) that a moment lies in."""
    today = datetime.fromtimestamp(unix_s, UTC)
    return int(datetime(today.year, today.month, 1, tzinfo=UTC).timestamp())


def summary(
    rows: Iterable[tuple[AccountKey, Sums]], by: Sequence[str], prices: Mapping[str, Price] | None = None
) -> list[dict[str, Any]]:
    """Rows added up by ``by``, in its order, with means of the times; with prices the money, as a text of its exact value."""
    found: dict[tuple[str, ...], Sums] = {}
    money: dict[tuple[str, ...], Decimal] = {}
    for key, sums in rows:
        group = tuple(_dimension(key, word) for word in by)
        found.setdefault(group, Sums()).add(sums)
        if prices is not None:
            price = prices.get(key.adapter) or prices.get("base") or Price()
            money[group] = money.get(group, Decimal(0)) + price.of(sums)
    made = []
    for group in sorted(found):
        sums = found[group]
        row: dict[str, Any] = dict(zip(by, group, strict=True))
        row |= {name: getattr(sums, name) for name in SUM_NAMES if not name.endswith("_s")}
        count = max(1, sums.requests)
        row |= {f"mean_{name}": round(getattr(sums, name) / count, 4) for name in SUM_NAMES if name.endswith("_s")}
        if prices is not None:
            row["cost"] = f"{money[group]:f}"
        made.append(row)
    return made


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Comma-separated values with a header. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _dimension(key: AccountKey, word: str) -> str:
    if word in ("hour", "day", "month"):
        text = hour_text(key.hour_s)
        return text if word == "hour" else text[: 10 if word == "day" else 7]
    return str(getattr(key, word))


__all__ = ["DIMENSIONS", "Price", "as_csv", "read_dimensions", "read_moment", "read_prices", "start_of_month", "summary"]
