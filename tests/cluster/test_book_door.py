"""Shared counters through the socket beside an engine: the same answers, and a store that is away when anything fails."""

from __future__ import annotations

import asyncio
import threading

import pytest

from evenflow.base.errors import RegistryError
from evenflow.cluster.book_door import BookDoor
from evenflow.fairness import ClientQueues, create_policy
from evenflow.fairness.books.counter_book import CounterBook
from evenflow.fairness.books.exchange import Batch
from evenflow.fairness.policies.book_socket import BookSocket


class Door:
    """A door in a thread of its own, onto a book in this process."""

    def __init__(self, path) -> None:
        self.book, self.is_away = CounterBook(), False
        self.path = path
        self.loop = asyncio.new_event_loop()
        self.door = BookDoor(self.exchange)
        self.loop.run_until_complete(self.door.open(path))
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    async def exchange(self, server, batch):
        if self.is_away:
            raise ConnectionError("away")
        return self.book.exchange(server, batch, 0.0)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.door.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()


@pytest.fixture
def door(tmp_path):
    opened = Door(tmp_path / "book.sock")
    yield opened
    opened.close()


def test_an_exchange_goes_to_the_book_and_back(door):
    store = BookSocket(door.path, server_id="s")
    first = store.exchange(Batch(1, charges={"a": 5.0}, waiting=["a"], known={"a": 1.0}))
    assert first.counters == {"a": 6.0}
    assert store.exchange(Batch(2, charges={"a": 2.0}, introduces=False)).counters == {"a": 8.0}
    assert door.book.counters() == {"a": 8.0}
    store.close()


def test_a_book_that_is_away_is_away_and_comes_back(door, caplog):
    store = BookSocket(door.path, server_id="s", timeout_s=2.0)
    door.is_away = True
    assert [store.exchange(Batch(1, charges={"a": 5.0})) for _ in range(2)] == [None, None]
    door.is_away = False
    assert store.exchange(Batch(1, charges={"a": 5.0})).counters == {"a": 5.0}
    assert store.num_failures == 2
    assert ["away" in record.message or "back" in record.message for record in caplog.records] == [True, True]
    door.book = CounterBook()
    assert store.exchange(Batch(2, introduces=False)).is_unknown
    store.close()


def test_a_policy_by_the_name_of_a_socket(tmp_path):
    policy = create_policy(f"vtc-shared:book://{tmp_path}/nobody.sock", queues=ClientQueues())
    assert policy.pick(0.0) is None
    policy.close()
    with pytest.raises(RegistryError, match="vtc-shared takes the address"):
        create_policy("vtc-shared", queues=ClientQueues())
