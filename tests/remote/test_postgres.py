"""Accounts in a real PostgreSQL, which the machine has. Run by `make test-remote`, skipped elsewhere."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

psycopg = pytest.importorskip("psycopg")

from evenflow.accounts.account_book import AccountBook  # noqa: E402
from evenflow.accounts.account_row import AccountKey, Sums  # noqa: E402
from evenflow.accounts.open_store import open_store  # noqa: E402
from evenflow.accounts.store import StoreAway  # noqa: E402

FOREVER = 1 << 40
FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PROGRAMS = str(FOLDERS[-1]) if FOLDERS else os.path.dirname(shutil.which("initdb") or "")
pytestmark = pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL is not installed")


class Postgres:
    """A server of its own folder and port. It refuses to run as root, so root runs it as the user ``postgres``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.run("initdb", "-D", str(folder / "data"), "-U", "us", "-A", "trust", "--no-sync")
        self.start()

    @property
    def address(self) -> str:
        return f"postgresql://us@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *words: str) -> None:
        user = {"user": "postgres"} if os.geteuid() == 0 else {}
        subprocess.run([f"{PROGRAMS}/{program}", *words], check=True, capture_output=True, cwd=self.folder, **user)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-o", options, "-l", f"{self.folder}/log", "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-m", mode, "stop")


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="evenflow-postgres-", ignore_cleanup_errors=True) as name:
        if os.geteuid() == 0:
            shutil.chown(name, "postgres")
        server = Postgres(Path(name))
        yield server
        server.stop()


def totals(address: str) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    store = open_store(address)
    for key, sums in store.read(0, FOREVER):
        requests, tokens = found.get(key.client, (0, 0))
        found[key.client] = (requests + sums.requests, tokens + sums.completion_tokens)
    store.close()
    return found


def test_a_batch_is_added_once_and_rows_are_read_and_forgotten(postgres):
    store = open_store(postgres.address)
    rows = {AccountKey(hour, "alice", "a", "stop"): Sums(1, 10, 2, 5, 7.5, 0.1, 0.2, 0.3) for hour in (0, 3600)}
    store.add("run", 1, rows)
    store.add("run", 1, rows)
    store.add("another run", 1, rows)
    found = dict(store.read(0, FOREVER, "alice"))
    assert found == {key: Sums(2, 20, 4, 10, 15.0, 0.2, 0.4, 0.6) for key in rows}
    assert list(store.read(0, FOREVER, "bob")) == []
    assert store.totals(0, FOREVER) == [("alice", "a", Sums(4, 40, 8, 20, 30.0, 0.4, 0.8, 1.2))]
    assert [type(value) for value in (store.totals(3600, FOREVER)[0][2].requests, found.popitem()[1].service)] == [int, float]
    assert store.totals(7200, FOREVER) == []
    assert store.forget_runs(3600) == 0
    assert store.forget_runs(3601) == 2
    assert store.prune(3600) == 1
    assert [key.hour_s for key, _ in store.read(0, FOREVER)] == [3600]
    store.close()


def test_two_servers_add_to_the_same_rows(postgres):
    books = [AccountBook(lambda: open_store(postgres.address), lambda: 0.0) for _ in range(2)]
    for book in books:
        book.start()

    def work(book: AccountBook) -> None:
        for n in range(600):
            book.add(f"client {n % 7}", "", "stop", Sums(1, completion_tokens=3))
            if n % 100 == 0:
                time.sleep(0.3)

    threads = [threading.Thread(target=work, args=(book,)) for book in books]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for book in books:
        book.close()
    found = totals(postgres.address)
    assert (sum(r for r, _ in found.values()), sum(t for _, t in found.values())) == (1200, 3600)


def test_a_database_that_is_killed_and_comes_back_loses_and_doubles_nothing(postgres):
    book = AccountBook(lambda: open_store(postgres.address), lambda: 0.0)
    book.start()
    for n in range(300):
        book.add("alice", "", "stop", Sums(1, completion_tokens=2))
        time.sleep(0.02)
        if n == 100:
            postgres.stop()
        if n == 200:
            assert book.is_away
            postgres.start()
    deadline = time.monotonic() + 15
    while (book.num_waiting or book.is_away) and time.monotonic() < deadline:
        time.sleep(0.1)
    book.close()
    assert book.num_failures >= 1
    assert totals(postgres.address) == {"alice": (300, 600)}


def test_an_address_where_nobody_is_is_away_and_not_an_end(postgres):
    postgres.stop("fast")
    with pytest.raises(StoreAway):
        list(open_store(postgres.address).read(0, FOREVER))
    postgres.start()
