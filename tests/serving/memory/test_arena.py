"""The arena against a plain map from page to owner."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evenflow.base.errors import ConfigError
from evenflow.bench.lora.baselines.partition import PartitionedArena
from evenflow.serving.memory.arena import Arena, PageOwner
from evenflow.serving.memory.page_table import PageTable, pages_for

OWNERS = [PageOwner(kind, name) for kind in ("request", "adapter", "cache") for name in ("a", "b")]
owners = st.sampled_from(OWNERS)


class ArenaMachine(RuleBasedStateMachine):
    @initialize(num_pages=st.integers(1, 12))
    def start(self, num_pages: int) -> None:
        self.arena = Arena(num_pages)
        self.held: dict[PageOwner, list[int]] = {owner: [] for owner in OWNERS}

    def num_held(self) -> int:
        return sum(map(len, self.held.values()))

    @rule(owner=owners, count=st.integers(0, 8))
    def allocate(self, owner: PageOwner, count: int) -> None:
        pages = self.arena.allocate(owner, count)
        if count > self.arena.num_pages - self.num_held():
            assert pages is None
            return
        assert pages is not None
        assert len(pages) == count
        taken = {page for others in self.held.values() for page in others}
        assert not taken & set(pages), "a page was given twice"
        self.held[owner] += pages
        pages.append(-1)  # what the caller does with its list is its own business

    @rule(owner=owners)
    def free(self, owner: PageOwner) -> None:
        assert self.arena.free(owner) == len(self.held[owner])
        self.held[owner] = []

    @rule(owner=owners, kept=st.integers(0, 6))
    def free_tail(self, owner: PageOwner, kept: int) -> None:
        assert self.arena.free_tail(owner, kept) == max(0, len(self.held[owner]) - kept)
        del self.held[owner][kept:]

    @invariant()
    def books_agree(self) -> None:
        self.arena.check_integrity()
        assert self.arena.num_free == self.arena.num_pages - self.num_held()
        for owner, pages in self.held.items():
            assert list(self.arena.pages_of(owner)) == pages
        for kind in ("request", "adapter", "cache"):
            mine = {owner for owner, pages in self.held.items() if owner.kind == kind and pages}
            assert self.arena.num_owned(kind) == sum(len(self.held[owner]) for owner in mine)
            assert set(self.arena.owners(kind)) == mine


TestArena = ArenaMachine.TestCase


def test_a_request_and_an_adapter_of_the_same_name_are_two_owners() -> None:
    arena = Arena(4)
    arena.allocate(PageOwner("request", "x"), 1)
    arena.allocate(PageOwner("adapter", "x"), 2)
    arena.free(PageOwner("request", "x"))
    assert len(arena.pages_of(PageOwner("adapter", "x"))) == 2
    assert arena.num_free == 2


def test_a_page_table_grows_page_by_page_and_gives_everything_back() -> None:
    arena = Arena(4)
    table = PageTable(arena, "r", page_tokens=4)
    assert [table.grow(n) for n in (1, 4, 5, 16)] == [True] * 4
    assert len(table.pages) == 4
    assert table.capacity == 16
    assert not table.grow(17), "the arena has only four pages"
    table.check_integrity()
    assert table.first(5) == table.pages[:2]
    assert table.first(16) is table.pages
    held_by_a_plan = table.pages
    assert table.release() == 4
    assert len(held_by_a_plan) == 4, "a plan that is still being computed keeps its list"
    assert arena.num_free == 4
    assert [pages_for(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_growing_is_all_or_nothing() -> None:
    arena = Arena(3)
    table = PageTable(arena, "r", page_tokens=2)
    assert table.grow(2)
    assert not table.grow(8)
    assert len(table.pages) == 1
    assert arena.num_free == 2
    table.check_integrity()


def test_what_one_side_of_a_partition_lacks_the_other_keeps() -> None:
    arena = PartitionedArena(6, num_adapter_pages=2)
    request, adapter, cache = PageOwner("request", "r"), PageOwner("adapter", "a"), PageOwner("cache", "c")
    assert arena.allocate(adapter, 3) is None
    assert arena.allocate(adapter, 2) == [4, 5]
    assert arena.allocate(request, 3) == [0, 1, 2]
    assert (arena.num_free, arena.num_free_for("adapter"), arena.num_free_for("request")) == (1, 0, 1)
    assert arena.allocate(request, 2) is None
    assert arena.allocate(cache, 1) == [3]
    arena.check_integrity()
    assert arena.free(adapter) == 2
    assert arena.allocate(request, 1) is None, "pages of adapters never serve a request"
    assert (arena.reusable(2, "adapter", "request"), arena.reusable(2, "cache", "request")) == (0, 2)
    assert arena.could_hold(request=4, adapter=2)
    assert not arena.could_hold(request=5, adapter=1)
    assert not arena.could_hold(request=1, adapter=3)
    arena.check_integrity()


@pytest.mark.parametrize("num_adapter_pages", [0, 6])
def test_both_sides_of_a_partition_have_a_page(num_adapter_pages: int) -> None:
    with pytest.raises(ConfigError, match="allowed: 1 to 5"):
        PartitionedArena(6, num_adapter_pages)
