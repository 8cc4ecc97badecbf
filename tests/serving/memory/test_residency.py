"""Residency against a plain model: who is in the arena, who uses it, who is pinned, who was idle longest."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evenflow.base.errors import AdapterError, AdapterNotFound
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.arena import Arena, PageOwner
from evenflow.serving.memory.residency import Residency

SIZES = {AdapterDigest(name): pages for name, pages in {"a": 1, "b": 1, "c": 2, "d": 3, "e": 5}.items()}
RECORDS = {digest: AdapterRecord(digest, AdapterSignature(((pages,),)), pages, pages * 100) for digest, pages in SIZES.items()}
KV = PageOwner("request", "kv")
digests = st.sampled_from(sorted(SIZES))


def lookup(digest: AdapterDigest) -> AdapterRecord:
    if digest not in RECORDS:
        raise AdapterNotFound(f"no adapter {digest}")
    return RECORDS[digest]


class ResidencyMachine(RuleBasedStateMachine):
    @initialize(num_pages=st.integers(3, 9), num_slots=st.integers(1, 4) | st.none())
    def start(self, num_pages: int, num_slots: int | None) -> None:
        self.arena = Arena(num_pages)
        self.residency = Residency(self.arena, lookup, num_slots=num_slots)
        self.users: list[AdapterDigest] = []
        self.pinned: set[AdapterDigest] = set()
        self.forgotten: set[AdapterDigest] = set()
        self.idle_order: list[AdapterDigest] = []
        self.resident: set[AdapterDigest] = set()
        self.loaded: dict[AdapterDigest, tuple[int, tuple[int, ...]]] = {}
        self.written: dict[int, AdapterDigest] = {}
        """Page -> whose rows were copied there last."""

    def num_available(self) -> int:
        return self.arena.num_free + sum(SIZES[d] for d in self.idle_order)

    def check_eviction(self, had_to_go: int) -> None:
        """Whoever left did so from the front of the idle order, and nobody left for nothing."""
        gone = [d for d in self.idle_order if not self.residency.is_resident(d)]
        assert gone == self.idle_order[: len(gone)], "not the least recently used"
        assert len(gone) <= had_to_go
        self.idle_order = self.idle_order[len(gone) :]
        self.resident -= set(gone)

    @rule(digest=digests, count=st.integers(1, 4), reserved=st.integers(0, 4), wanted=st.sets(digests))
    def prefetch(self, digest: AdapterDigest, count: int, reserved: int, wanted: set[AdapterDigest]) -> None:
        was_resident = digest in self.resident
        missing = self.residency.num_pages_to_prefetch(RECORDS[digest])
        free, line = self.arena.num_free, list(self.idle_order)
        while line and free < SIZES[digest] + reserved and line[0] not in wanted:
            free += SIZES[line.pop(0)]
        fits = was_resident or (free >= SIZES[digest] + reserved and len(self.resident) < self.residency.num_slots)
        before = list(self.idle_order)
        planned = self.residency.prefetch(RECORDS[digest], count, num_reserved=reserved, is_wanted=wanted.__contains__)
        assert planned == (min(count, missing) if fits else 0)
        if was_resident or not fits:
            assert [d for d in before if self.residency.is_resident(d)] == before, "somebody left for nothing"
            return
        gone = before[: len(before) - len(line)]
        assert not wanted.intersection(gone)
        self.check_eviction(len(gone))
        assert self.idle_order == line
        self.resident.add(digest)
        self.idle_order.append(digest)
        assert self.arena.num_free >= reserved, "pages of the reserve were taken"
        assert self.residency.bytes_due(RECORDS[digest]) == RECORDS[digest].size_bytes

    @rule(wanted=st.sets(digests))
    def drop_prefetches(self, wanted: set[AdapterDigest]) -> None:
        unfinished = {d for d in self.idle_order if not self.residency.is_loaded(d) and d not in wanted}
        self.residency.drop_prefetches(wanted.__contains__)
        gone = {d for d in self.idle_order if not self.residency.is_resident(d)}
        assert gone <= unfinished
        self.idle_order = [d for d in self.idle_order if d not in gone]
        self.resident -= gone

    def enter(self, digest: AdapterDigest) -> None:
        self.resident.add(digest)
        if digest in self.idle_order:
            self.idle_order.remove(digest)

    @rule(digest=digests)
    def acquire(self, digest: AdapterDigest) -> None:
        was_resident = digest in self.resident
        others = [d for d in self.idle_order if d != digest]
        num_slots = self.residency.num_slots
        fits = was_resident or (
            SIZES[digest] <= self.num_available() and (len(self.resident) < num_slots or bool(self.idle_order))
        )
        assert self.residency.can_acquire(RECORDS[digest]) == fits
        cost = self.residency.pages_to_acquire(RECORDS[digest])
        before = self.num_available()
        slot = self.residency.acquire(digest)
        assert (slot is not None) == fits
        if fits:
            self.enter(digest)
            self.check_eviction(0 if was_resident else len(others))
            self.users.append(digest)
            assert self.num_available() == before - cost

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.users:
            digest = self.users.pop(data.draw(st.integers(0, len(self.users) - 1)))
            self.residency.release(digest)
            if digest not in self.users and digest not in self.pinned:
                if digest in self.forgotten:
                    self.resident.discard(digest)
                else:
                    self.idle_order.append(digest)
            if digest not in self.users:
                self.forgotten.discard(digest)

    @rule(digest=digests)
    def pin(self, digest: AdapterDigest) -> None:
        others = [d for d in self.idle_order if d != digest]
        fits = self.residency.can_acquire(RECORDS[digest])
        if not fits:
            with pytest.raises(AdapterError):
                self.residency.pin(digest)
            return
        was_resident = digest in self.resident
        self.residency.pin(digest)
        self.enter(digest)
        self.check_eviction(0 if was_resident else len(others))
        self.pinned.add(digest)
        self.forgotten.discard(digest)

    @rule(digest=digests)
    def unpin(self, digest: AdapterDigest) -> None:
        self.residency.unpin(digest)
        if digest in self.pinned:
            self.pinned.discard(digest)
            if digest not in self.users:
                self.idle_order.append(digest)

    @rule(digest=digests)
    def forget(self, digest: AdapterDigest) -> None:
        is_gone = self.residency.forget(digest)
        self.pinned.discard(digest)
        assert is_gone == (digest not in self.users)
        if is_gone:
            self.resident.discard(digest)
            if digest in self.idle_order:
                self.idle_order.remove(digest)
        else:
            self.forgotten.add(digest)

    @rule(count=st.integers(1, 9))
    def kv_wants_pages(self, count: int) -> None:
        fits = count <= self.num_available()
        assert self.residency.idle_pages.reclaim(count, "request") == fits
        if fits:
            gone = [d for d in self.idle_order if not self.residency.is_resident(d)]
            assert not gone or self.arena.num_free - SIZES[gone[-1]] < count, "somebody left for nothing"
            self.check_eviction(len(self.idle_order))
            pages = self.arena.allocate(KV, count)
            assert pages is not None
            self.written |= dict.fromkeys(pages, AdapterDigest("kv"))
        else:
            self.check_eviction(0)

    @rule()
    def kv_ends(self) -> None:
        self.arena.free(KV)

    @rule()
    def take_loads(self) -> None:
        for load in self.residency.take_loads():
            assert load.digest in self.resident, "a load for an adapter that is gone"
            pages = tuple(self.arena.pages_of(PageOwner("adapter", load.digest)))
            assert tuple(load.pages) == pages
            assert load.first < load.stop
            assert all(self.written[page] == load.digest for page in pages[: load.first]), "a part was never loaded, or lost"
            for page in pages[load.first : load.stop]:
                self.written[page] = load.digest
            assert not (load.is_prefetch and load.digest in self.users), "what is used cannot wait until the step's end"
            if load.is_last:
                self.loaded[load.digest] = (load.slot, pages)

    @rule()
    def what_was_loaded_is_what_is_there(self) -> None:
        self.take_loads()
        assert not self.residency.take_loads(), "a load was planned twice"
        for digest in self.users:
            slot = self.residency.acquire(digest)
            self.residency.release(digest)
            pages = tuple(self.arena.pages_of(PageOwner("adapter", digest)))
            assert self.loaded[digest] == (slot, pages)
            assert {self.written[page] for page in pages} == {digest}
            assert self.residency.is_loaded(digest)

    @invariant()
    def books_agree(self) -> None:
        self.arena.check_integrity()
        self.residency.check_integrity(self.users)
        assert set(self.residency.residents()) == self.resident
        assert self.residency.num_idle_pages == sum(SIZES[d] for d in self.idle_order)
        assert {d for d in SIZES if self.residency.is_pinned(AdapterDigest(d))} == self.pinned


TestResidency = ResidencyMachine.TestCase


def test_an_adapter_stays_when_its_last_request_ends() -> None:
    residency = Residency(Arena(4), lookup)
    slot = residency.acquire(AdapterDigest("c"))
    residency.release(AdapterDigest("c"))
    assert residency.acquire(AdapterDigest("c")) == slot
    assert residency.num_loads == 1
    assert residency.loaded_bytes == 200


def test_a_thousand_adapters_cycle_through_room_for_ten() -> None:
    records = {AdapterDigest(f"x{i}"): AdapterRecord(AdapterDigest(f"x{i}"), AdapterSignature(()), 2, 10) for i in range(1000)}
    arena = Arena(20)
    residency = Residency(arena, records.__getitem__)
    slots = set()
    for digest in records:
        slot = residency.acquire(digest)
        assert slot is not None
        slots.add(slot)
        assert len(residency.take_loads()) == 1
        residency.release(digest)
    residency.check_integrity([])
    assert residency.num_resident == 10
    assert slots == set(range(10))
    assert residency.num_evictions == 990


def test_an_adapter_that_is_too_big_is_not_acquired_and_nobody_leaves_for_it() -> None:
    residency = Residency(Arena(4), lookup)
    residency.acquire(AdapterDigest("a"))
    residency.release(AdapterDigest("a"))
    assert residency.acquire(AdapterDigest("e")) is None
    assert residency.is_resident("a")


def test_an_unknown_adapter_raises() -> None:
    residency = Residency(Arena(4), lookup)
    with pytest.raises(AdapterNotFound):
        residency.acquire(AdapterDigest("nobody"))
    residency.check_integrity([])


def test_a_load_that_was_not_taken_is_dropped_with_its_adapter() -> None:
    residency = Residency(Arena(4), lookup)
    residency.pin(AdapterDigest("a"))
    assert residency.forget(AdapterDigest("a"))
    assert residency.take_loads() == ()
    assert residency.num_evictions == 0, "an unload is no eviction"
