"""What is used of a month: exact across restarts, other servers, months that end and clocks that jump."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from evenflow.accounts.account_book import AccountBook
from evenflow.accounts.account_row import Sums
from evenflow.accounts.report import Price
from evenflow.accounts.spending import Spending, Spent
from evenflow.accounts.sqlite_store import SQLiteStore
from evenflow.accounts.store import StoreAway


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


class Clock:
    def __init__(self, text: str) -> None:
        self.now_s = at(text)

    def __call__(self) -> float:
        return self.now_s


def book_of(path: Path, clock: Clock, prices=None) -> tuple[AccountBook, Spending]:
    spending = Spending(clock, prices)
    book = AccountBook(lambda: SQLiteStore(path), clock, spending=spending)
    book._store = book._open()  # as start() does, without its thread
    book.read_spending()
    return book, spending


def used(tokens: int) -> Sums:
    return Sums(1, tokens, 0, 0)


def test_a_month_survives_a_restart_and_ends_at_its_end(tmp_path):
    clock = Clock("2026-12-31T23:58:00")
    book, spending = book_of(tmp_path / "u", clock)
    book.add("alice", "", "stop", Sums(1, 10, 4, 5))
    assert spending.of("alice") == Spent(15), "counted before it is written; cached tokens are prompt tokens"
    assert book.flush()
    book.add("alice", "a", "stop", used(1))
    assert spending.of("alice") == Spent(16)
    assert spending.of("bob") == Spent()
    book.flush()
    _, again = book_of(tmp_path / "u", clock)
    assert again.of("alice") == Spent(16)
    assert (again.seconds_left(), again.renews_s) == (120, at("2027-01-01"))
    clock.now_s += 120
    assert again.of("alice") == spending.of("alice") == Spent(), "a new month"
    assert again.renews_s == at("2027-02-01")
    book.add("alice", "", "stop", used(7))
    assert spending.of("alice") == Spent(7)
    clock.now_s -= 3600  # a clock that jumps back finds its month as it was
    assert spending.of("alice") == Spent(16)
    book.flush()
    clock.now_s += 3600
    assert book_of(tmp_path / "u", clock)[1].of("alice") == Spent(7)


def test_a_question_to_the_store_counts_nothing_twice_and_hears_of_other_servers(tmp_path):
    clock = Clock("2026-12-05T12:00:00")
    book, spending = book_of(tmp_path / "u", clock)
    other, _ = book_of(tmp_path / "u", clock)
    book.add("alice", "", "stop", used(10))
    other.add("alice", "", "stop", used(5))
    other.flush()
    assert spending.of("alice") == Spent(10)
    book.flush()
    book.add("alice", "", "stop", used(1))  # not written yet
    book.read_spending()
    assert spending.of("alice") == Spent(16)
    for _ in range(3):
        book.read_spending()
        assert spending.of("alice") == Spent(16)


def test_a_batch_that_waits_for_its_store_is_not_asked_about(tmp_path, monkeypatch):
    clock = Clock("2026-12-05T12:00:00")
    book, spending = book_of(tmp_path / "u", clock)
    book.add("alice", "", "stop", used(10))

    def away(*_: object) -> None:
        raise StoreAway("away")

    with monkeypatch.context() as patch:
        patch.setattr(book._store, "add", away)
        assert not book.flush()
        book.read_spending()
        assert spending.of("alice") == Spent(10)
    assert book.flush()
    book.read_spending()
    assert spending.of("alice") == Spent(10)


def test_money_is_exact_and_by_adapter(tmp_path):
    prices = {"base": Price(Decimal("0.1"), Decimal("0.02"), Decimal("0.4")), "legal": Price(Decimal(3))}
    clock = Clock("2026-12-05T12:00:00")
    book, spending = book_of(tmp_path / "u", clock, prices)
    book.add("alice", "legal", "stop", Sums(1, 1_000_000, 0, 5))
    book.add("alice", "other", "stop", Sums(1, 1_000_000, 500_000, 500_000))
    assert spending.of("alice") == Spent(2_500_005, Decimal("3.26"))
    book.flush()
    assert book_of(tmp_path / "u", clock, prices)[1].of("alice") == Spent(2_500_005, Decimal("3.26"))


def test_a_store_that_is_away_at_the_start_is_asked_when_it_is_back(tmp_path):
    clock = Clock("2026-12-05T12:00:00")
    book, _ = book_of(tmp_path / "u", clock)
    book.add("alice", "", "stop", used(10))
    book.flush()
    is_away = True

    def open_store() -> SQLiteStore:
        if is_away:
            raise StoreAway("away")
        return SQLiteStore(tmp_path / "u")

    spending = Spending(clock)
    later = AccountBook(open_store, clock, spending=spending)
    with pytest.raises(StoreAway):
        later._open()
    later.add("alice", "", "stop", used(2))
    assert not later.flush()
    assert (spending.is_known, spending.of("alice")) == (False, Spent(2))
    is_away = False
    assert later.flush()
    later._read_again()
    assert (spending.is_known, spending.of("alice")) == (True, Spent(12))
