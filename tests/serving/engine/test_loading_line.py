"""Who is next to have an adapter's folder read: folders that hang delay nobody else's for longer than the patience."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from evenflow.serving.engine.loading_line import PATIENCE_S, LoadingLine


class Folders:
    """Loads that hang until they are let go, and others that end at once; ``now_s`` is the time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.line = LoadingLine(lambda: self.now_s)
        self.may_end = threading.Event()
        self.begun: list[str] = []
        self._numbers = itertools.count()

    def hang(self, client_id: str) -> None:
        def prepare():
            self.begun.append(client_id)
            self.may_end.wait(30)
            raise OSError("it hung")

        self.line.submit(prepare, client_id)

    def good(self, client_id: str, result: Any = None):
        return self.line.submit(lambda: result, client_id)


@pytest.fixture
def folders():
    folders = Folders()
    yield folders
    folders.may_end.set()
    folders.line.close()


def when_begun(folders: Folders, future) -> float:
    """Seconds of the line's time until the load is done; time only passes when everything that can end has ended."""
    began_s = folders.now_s
    while not future.done():
        try:
            future.exception(0.05)
        except TimeoutError:
            folders.now_s += PATIENCE_S / 4
            folders.line.advance()
            assert folders.now_s - began_s < 60, "it never begins"
    return folders.now_s - began_s


@pytest.mark.parametrize("num_hanging", [1, 2, 5, 200])
def test_folders_of_one_client_that_hang_delay_another_client_by_the_patience_at_most(folders, num_hanging):
    for _ in range(num_hanging):
        folders.hang("hostile")
    for i in range(5):
        assert when_begun(folders, folders.good("quiet", i)) <= PATIENCE_S
        folders.now_s += 0.1
    assert len(folders.begun) <= 4, "the last readers are for others"


def test_a_client_with_one_folder_that_hangs_has_its_others_read(folders):
    folders.hang("unlucky")
    folders.hang("unlucky")
    assert when_begun(folders, folders.good("unlucky")) <= PATIENCE_S


def test_clients_take_turns_and_those_of_one_keep_their_order(folders):
    folders.hang("a")
    folders.hang("b")
    order: list[str] = []
    for name in ("a1", "a2", "a3", "b1", "c1", "c2"):
        last = folders.line.submit(lambda name=name: order.append(name), name[0])
    assert not last.done()
    folders.may_end.set()
    while not last.done() or len(order) < 6:
        folders.now_s += 0.01
        folders.line.advance()
    assert sorted(order) == ["a1", "a2", "a3", "b1", "c1", "c2"]
    for client in "abc":
        assert [name for name in order if name[0] == client] == sorted(name for name in order if name[0] == client)
    assert order.index("c1") < order.index("a3")


def test_what_a_load_fails_of_is_its_futures(folders):
    def fail():
        raise MemoryError("no room")

    assert isinstance(folders.line.submit(fail).exception(5), MemoryError)
    assert folders.good("", 3).result(5) == 3


def test_a_closed_line_begins_nothing(folders):
    for _ in range(6):
        folders.hang("a")
    folders.line.close()
    folders.may_end.set()
    folders.line.advance()
    assert len(folders.begun) <= 2
