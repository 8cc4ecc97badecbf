"""The heap of clients against a plain dictionary and min()."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from evenflow.fairness.books.heap import RisingHeap

CLIENTS = [f"c{i}" for i in range(8)]


class HeapMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.keys = dict.fromkeys(CLIENTS, 0.0)
        self.heap = RisingHeap(self.keys)
        self.members: set[str] = set()

    @rule(client=st.sampled_from(CLIENTS))
    def add(self, client: str) -> None:
        if client not in self.members:
            self.heap.add(client)
            self.members.add(client)

    @rule(client=st.sampled_from(CLIENTS))
    def discard(self, client: str) -> None:
        self.heap.discard(client)
        self.members.discard(client)

    @rule(client=st.sampled_from(CLIENTS), amount=st.integers(0, 9))
    def raise_key(self, client: str, amount: int) -> None:
        self.keys[client] += amount

    @rule(client=st.sampled_from(CLIENTS), amount=st.integers(1, 9))
    def lower_key(self, client: str, amount: int) -> None:
        self.keys[client] -= amount
        self.heap.lowered(client)

    @invariant()
    def least_is_least(self) -> None:
        self.heap.check_integrity()
        assert set(self.heap) == self.members
        assert len(self.heap) == len(self.members)
        least = self.heap.peek()
        if not self.members:
            assert least is None
        else:
            assert least in self.members
            assert self.keys[least] == min(self.keys[c] for c in self.members)


TestHeap = HeapMachine.TestCase


def test_equal_keys_come_in_the_order_of_adding() -> None:
    keys = {"b": 1.0, "a": 1.0, "c": 1.0}
    heap = RisingHeap(keys)
    for client in ("b", "a", "c"):
        heap.add(client)
    assert heap.peek() == "b"
    keys["b"] = 2.0
    assert heap.peek() == "a"


def test_dead_entries_do_not_pile_up() -> None:
    keys = {f"c{i}": float(i) for i in range(1000)}
    heap = RisingHeap(keys)
    for _ in range(20):
        for client in keys:
            heap.add(client)
        for client in keys:
            heap.discard(client)
        heap.check_integrity()
    assert heap.peek() is None
