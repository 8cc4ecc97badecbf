"""Accounts add up: nothing is counted twice, nothing is lost but the last second, whatever happens to the store."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.accounts.account_book import OVERFLOW, AccountBook
from evenflow.accounts.account_row import AccountKey, Sums, hour_of
from evenflow.accounts.open_store import open_store
from evenflow.accounts.report import as_csv, read_dimensions, read_moment, read_prices, summary
from evenflow.accounts.sqlite_store import SQLiteStore
from evenflow.accounts.store import StoreAway
from evenflow.base.errors import ConfigError, InvalidRequest
from evenflow.cli.main import main

FOREVER = 1 << 40


def totals(path: Path) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    store = SQLiteStore(path)
    for key, sums in store.read(0, FOREVER):
        requests, tokens = found.get(key.client, (0, 0))
        found[key.client] = (requests + sums.requests, tokens + sums.completion_tokens)
    store.close()
    return found


def book_of(path: Path, now_s: float = 0.0, **options) -> AccountBook:
    return AccountBook(lambda: SQLiteStore(path), lambda: now_s, **options)


def test_what_is_added_is_read_again_by_hour_and_client(tmp_path) -> None:
    path = tmp_path / "state" / "usage.sqlite"
    moment = [7200.0]
    book = AccountBook(lambda: SQLiteStore(path), lambda: moment[0])
    book.add("alice", "", "stop", Sums(1, 10, 2, 5, 7.5, 0.1, 0.2, 0.3))
    book.add("alice", "", "stop", Sums(1, 1, 0, 1, 1.0, 0.1, 0.1, 0.1))
    assert book.flush()
    moment[0] = 3599.0  # The clock jumps back: it is another hour's row, and nothing is lost.
    book.add("alice", "a", "length", Sums(1, 1, 0, 1, 1.0, 0.0, 0.0, 0.0))
    assert book.flush()
    store = SQLiteStore(path)
    rows = dict(store.read(0, FOREVER))
    assert rows[AccountKey(7200, "alice", "", "stop")] == Sums(2, 11, 2, 6, 8.5, 0.2, pytest.approx(0.3), pytest.approx(0.4))
    assert rows[AccountKey(0, "alice", "a", "length")].requests == 1
    assert list(store.read(3600, FOREVER, "bob")) == []
    assert store.prune(3600) == 1
    assert len(list(store.read(0, FOREVER))) == 1


class Shaky:
    """A store that fails before or after it has written, as the test says."""

    def __init__(self, inner: SQLiteStore, faults: list[str]) -> None:
        self.inner, self.faults = inner, faults

    def add(self, run, sequence, rows) -> None:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "before":
            raise StoreAway("away")
        self.inner.add(run, sequence, rows)
        if fault == "after":
            raise StoreAway("the answer was lost")

    def read(self, since_s, until_s, client=None):
        return self.inner.read(since_s, until_s, client)

    def totals(self, since_s, until_s):
        return self.inner.totals(since_s, until_s)

    def forget_runs(self, before_s) -> int:
        return self.inner.forget_runs(before_s)

    def prune(self, before_s) -> int:
        return self.inner.prune(before_s)

    def close(self) -> None:
        self.inner.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(st.tuples(st.just("add"), st.sampled_from("abc"), st.integers(0, 9)), st.just(("flush", "", 0))), max_size=30
    ),
    st.lists(st.sampled_from(["", "before", "after"]), max_size=15),
)
def test_nothing_is_lost_or_counted_twice_whatever_the_store_answers(tmp_path_factory, actions, faults) -> None:
    path = tmp_path_factory.mktemp("shaky") / "usage.sqlite"
    store = Shaky(SQLiteStore(path), list(faults))
    book = AccountBook(lambda: store, lambda: 0.0)
    wanted: dict[str, tuple[int, int]] = {}
    for kind, client, tokens in actions:
        if kind == "flush":
            book.flush()
            continue
        book.add(client, "", "stop", Sums(1, completion_tokens=tokens))
        requests, so_far = wanted.get(client, (0, 0))
        wanted[client] = (requests + 1, so_far + tokens)
    store.faults.clear()
    assert book.flush()
    assert book.flush()
    assert book.num_waiting == 0
    assert totals(path) == wanted


def test_many_threads_and_two_servers_on_one_file(tmp_path) -> None:
    path = tmp_path / "usage.sqlite"
    books = [book_of(path), book_of(path)]
    for book in books:
        book.start()

    def work(book: AccountBook) -> None:
        for _ in range(500):
            book.add("a", "", "stop", Sums(1, completion_tokens=3))

    threads = [threading.Thread(target=work, args=(books[n % 2],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for book in books:
        book.close()
    assert totals(path) == {"a": (2000, 6000)}


def test_a_store_that_is_away_for_long_keeps_the_sums_and_bounds_the_rows(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("evenflow.accounts.account_book.MOST_ROWS", 10)

    def away():
        raise StoreAway("no route to the database")

    book = AccountBook(away, lambda: 0.0)
    for n in range(100):
        book.add(f"client {n}", "", "stop", Sums(1, completion_tokens=1))
        if n == 4:
            assert not book.flush()
    assert book.is_away
    assert book.num_waiting <= 5 + 10 + 1
    book._open = lambda: SQLiteStore(tmp_path / "usage.sqlite")
    assert book.flush()
    assert book.flush()
    assert not book.is_away
    found = totals(tmp_path / "usage.sqlite")
    assert sum(requests for requests, _ in found.values()) == 100
    assert found[OVERFLOW][0] == book.num_overflowed == 85


CHILD = """
import sys, time
from evenflow.accounts.account_book import AccountBook
from evenflow.accounts.account_row import Sums
from evenflow.accounts.sqlite_store import SQLiteStore
import evenflow.accounts.account_book as module
from pathlib import Path
module.FLUSH_S = 0.02
book = AccountBook(lambda: SQLiteStore(Path(sys.argv[1])), time.time)
book.start()
for n in range(10 ** 9):
    book.add(f"c{n % 50}", "", "stop", Sums(1, completion_tokens=1))
    if n % 200 == 0:
        print(n + 1, flush=True)
        time.sleep(0.002)
"""


def test_a_kill_in_the_middle_of_writing_loses_the_last_moment_and_doubles_nothing(tmp_path) -> None:
    path = tmp_path / "usage.sqlite"
    written = 0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        told, deadline = 0, time.monotonic() + 1.0
        for line in child.stdout:
            told = int(line)
            if time.monotonic() > deadline and told > 2000:
                break
        child.send_signal(signal.SIGKILL)
        told = max([told, *(int(line) for line in child.stdout.read().split() if line.isdigit())])
        child.wait()
        before, written = written, sum(requests for requests, _ in totals(path).values())
        assert before < written <= before + told + 200
        assert {tokens == requests for requests, tokens in totals(path).values()} == {True}


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path) -> None:
    code = (
        "import resource, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path\n"
        "from evenflow.accounts.account_book import AccountBook\n"
        "from evenflow.accounts.account_row import Sums\n"
        "from evenflow.accounts.sqlite_store import SQLiteStore\n"
        "path = Path(sys.argv[1])\n"
        "book = AccountBook(lambda: SQLiteStore(path), lambda: 0.0)\n"
        "book.add('first', '', 'stop', Sums(1)); assert book.flush()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))\n"
        "for n in range(5000): book.add(f'client {n:050d}', '', 'stop', Sums(1))\n"
        "assert not book.flush(); assert book.is_away; assert book.num_failures == 1\n"
        "book.add('later', '', 'stop', Sums(1))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "assert book.flush() and book.flush() and not book.is_away\n"
    )
    path = tmp_path / "usage.sqlite"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=os.environ)
    assert sum(requests for requests, _ in totals(path).values()) == 5002


def test_files_that_are_no_accounts_are_refused(tmp_path) -> None:
    text = tmp_path / "text"
    text.write_text("not a database, and long enough to be looked at" * 50)
    with pytest.raises(ConfigError, match="is no file of accounts"):
        open_store(str(text))
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    with pytest.raises(ConfigError, match="no file of accounts of this version"):
        open_store(str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="postgresql://"):
        open_store("mysql://host/db")
    with pytest.raises(ConfigError, match="no accounts at"):
        open_store(str(tmp_path / "nothing"), must_exist=True)


def test_money_is_exact_and_adapters_without_a_price_cost_what_the_base_model_costs(tmp_path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(
        '[prices.base]\nprompt = "0.1"\ncompletion = 0.3\n[prices.gold]\nprompt = 1\ncached = "0.5"\ncompletion = 3\n'
    )
    rows = [(AccountKey(0, "a", adapter, "stop"), Sums(1, 3, 1, 7)) for adapter in ("", "gold", "other")]
    made = summary(rows, ("adapter",), read_prices(path))
    assert {row["adapter"]: Decimal(row["cost"]) for row in made} == {
        "": Decimal("0.0000024"),
        "other": Decimal("0.0000024"),
        "gold": Decimal("0.0000235"),
    }
    path.write_text("[prices.base]\nprompt = -1\n")
    with pytest.raises(ConfigError, match=r"prices\.base; allowed: 0 or more"):
        read_prices(path)


def test_tables_for_spreadsheets_hold_no_formula() -> None:
    rows = summary([(AccountKey(0, "=cmd|' /C calc'!A0", "-a,b", "stop"), Sums(1))], ("client", "adapter"))
    assert as_csv(rows).splitlines()[1].startswith("'=cmd|' /C calc'!A0,\"'-a,b\",1,")
    assert as_csv([]) == ""


def test_questions_that_mean_nothing_are_refused() -> None:
    assert read_dimensions("client, day,client") == ("client", "day")
    assert read_moment("1970-01-02", "since") == 86400
    assert read_moment("1970-01-02T01:00+01:00", "since") == 86400
    with pytest.raises(InvalidRequest, match="by is 'colour'; allowed: client, adapter"):
        read_dimensions("colour")
    with pytest.raises(InvalidRequest, match="since is 'yesterday'"):
        read_moment("yesterday", "since")


def test_the_command_line_reads_the_same(tmp_path, capsys) -> None:
    path = tmp_path / "usage.sqlite"
    book = book_of(path, time.time())
    book.add("alice", "", "stop", Sums(1, 10, 0, 5, 20.0))
    book.add("bob\x1b[31m", "gold", "abort", Sums(2, 1, 0, 1, 3.0))
    book.flush()
    assert main(["usage", "--accounts", str(path)]) == 0
    table = capsys.readouterr().out
    assert "alice" in table
    assert "\x1b" not in table
    assert main(["usage", "--accounts", str(path), "--by", "month", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["requests"], row["prompt_tokens"], row["service"]) == (3, 11, 23.0)
    assert main(["usage", "--accounts", str(path), "--client", "alice", "--csv", "--since", "2020-01-01"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("alice,,1,10,0,5,20.0,")
    assert main(["usage", "--accounts", str(tmp_path / "none")]) == 1


def test_hours_are_whole() -> None:
    assert hour_of(7199.9) == 3600
    assert hour_of(7200.0) == 7200


def test_a_clock_that_jumps_ahead_forgets_no_history(tmp_path) -> None:
    path, moment = tmp_path / "usage.sqlite", [1e9]
    book = AccountBook(lambda: SQLiteStore(path), lambda: moment[0], retention_days=30, monotonic=lambda: 0.0)
    book.add("alice", "", "stop", Sums(1))
    assert book.flush()
    moment[0] += 800 * 86400
    book._prune()
    assert totals(path) == {"alice": (1, 0)}


def test_a_writer_that_meets_a_fault_of_its_own_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("evenflow.accounts.account_book.FLUSH_S", 0.01)
    path = tmp_path / "usage.sqlite"
    store = SQLiteStore(path)
    faults = [ZeroDivisionError("a fault of ours")]

    class Faulty(Shaky):
        def add(self, run, sequence, rows) -> None:
            if faults:
                raise faults.pop()
            self.inner.add(run, sequence, rows)

    book = AccountBook(lambda: Faulty(store, []), lambda: 0.0)
    book.start()
    book.add("alice", "", "stop", Sums(1))
    deadline = time.monotonic() + 10
    while book.num_waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert book.num_failures == 1
    book.close()
    assert totals(path) == {"alice": (1, 0)}


def test_numbers_of_batches_are_forgotten_long_after_their_servers(tmp_path) -> None:
    path, moment = tmp_path / "usage.sqlite", [1e9]
    for number in range(3):
        book = AccountBook(lambda: SQLiteStore(path), lambda: moment[0], run=f"run {number}")
        book.add("alice", "", "stop", Sums(1))
        assert book.flush()
        moment[0] += 30 * 86400
    moment[0] -= 86400  # run 0 wrote 89 days ago, run 1 59 and run 2 29
    book = AccountBook(lambda: SQLiteStore(path), lambda: moment[0])
    book._store = SQLiteStore(path)
    book._prune()
    database = sqlite3.connect(path)
    assert sorted(run for (run,) in database.execute("SELECT run FROM batches")) == ["run 1", "run 2"]
    assert totals(path) == {"alice": (3, 0)}, "without --accounts-days no hour is forgotten"


def test_a_file_of_the_first_version_is_taken_over(tmp_path) -> None:
    path = tmp_path / "usage.sqlite"
    store = SQLiteStore(path)
    key = AccountKey(3600, "alice", "", "stop")
    store.add("run", 1, {key: Sums(1)})
    store.close()
    database = sqlite3.connect(path)
    database.executescript("ALTER TABLE batches DROP COLUMN hour_s; PRAGMA user_version = 1;")
    database.close()
    store = SQLiteStore(path)
    store.add("run", 1, {key: Sums(1)})  # it was added before
    store.add("run", 2, {key: Sums(1)})
    assert dict(store.read(0, FOREVER))[key].requests == 2
    assert store.forget_runs(3600) == 0
    assert store.forget_runs(3601) == 1
    store.close()
