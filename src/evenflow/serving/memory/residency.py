"""Which adapter is in the arena, in which slot, and who needs it there. Bookkeeping only, no bytes move here.

An adapter stays when its last request ends and is evicted when its pages are wanted (S-LoRA, section 5,
dropped it at once). An adapter that a running request uses, or that was pinned, is never evicted.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from evenflow.base.errors import AdapterError
from evenflow.serving.core.adapter import AdapterRecord
from evenflow.serving.core.plan import AdapterLoad
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.arena import Arena, OwnerKind, PageOwner
from evenflow.serving.memory.eviction import EvictionOrder, LeastRecentlyUsed
from evenflow.serving.memory.idle_pages import IdlePages


@dataclass(slots=True)
class _Resident:
    record: AdapterRecord
    slot: int
    pages: list[int]
    num_users: int = 0
    is_pinned: bool = False
    idle_since: int = 0
    is_forgotten: bool = False
    """Leave as soon as nobody uses it."""
    owner: PageOwner = field(init=False)

    def __post_init__(self) -> None:
        self.owner = PageOwner("adapter", self.record.digest)

    @property
    def is_evictable(self) -> bool:
        return self.num_users == 0 and not self.is_pinned


class Residency:
    """Loads, pins and evicts adapters. ``lookup`` answers with the record of a digest, or raises AdapterNotFound.

    A load is only planned here: ``take_loads`` hands the planned ones over, once, and whoever takes them
    copies the weights before anything computes with them.
    """

    def __init__(
        self,
        arena: Arena,
        lookup: Callable[[AdapterDigest], AdapterRecord],
        *,
        num_slots: int | None = None,
        order: EvictionOrder | None = None,
        idle_pages: IdlePages | None = None,
    ) -> None:
        self._arena = arena
        self.kind: OwnerKind = "adapter"
        self.idle_pages = idle_pages or IdlePages(arena)
        """Everything that may be taken back, adapters and others."""
        self.idle_pages.add_holder(self)
        self._lookup = lookup
        self.num_slots = arena.num_pages if num_slots is None else num_slots
        """Adapters that can be resident at once; every adapter has a page at least, so the default never binds."""
        self._order = order or LeastRecentlyUsed()
        self._residents: dict[AdapterDigest, _Resident] = {}
        self._free_slots: list[int] = []
        self._num_slots_used = 0
        self._pending: dict[AdapterDigest, AdapterLoad] = {}
        self.num_idle_pages = 0
        """Pages that evicting every idle adapter would free."""
        self.num_pinned_pages = 0
        self.num_loads = 0
        self.num_evictions = 0
        self.loaded_bytes = 0
        self._loads_by_digest: dict[AdapterDigest, int] = {}

    @property
    def num_resident(self) -> int:
        """Adapters in the arena."""
        return len(self._residents)

    def record(self, digest: AdapterDigest) -> AdapterRecord:
        """The record of a resident or known adapter. Raises AdapterNotFound."""
        resident = self._residents.get(digest)
        return self._lookup(digest) if resident is None else resident.record

    def is_resident(self, digest: str) -> bool:
        """True if the adapter is in the arena."""
        return digest in self._residents

    def is_pinned(self, digest: AdapterDigest) -> bool:
        """True if the adapter was pinned by ``pin``."""
        resident = self._residents.get(digest)
        return resident is not None and resident.is_pinned

    def num_users(self, digest: AdapterDigest) -> int:
        """How often the adapter is acquired now."""
        resident = self._residents.get(digest)
        return 0 if resident is None else resident.num_users

    def num_loads_of(self, digest: AdapterDigest) -> int:
        """How often the adapter was loaded since it was registered."""
        return self._loads_by_digest.get(digest, 0)

    def residents(self) -> Iterator[AdapterDigest]:
        """The adapters in the arena."""
        return iter(self._residents)

    def pages_to_acquire(self, record: AdapterRecord) -> int:
        """Of the pages that are free or idle now, how many ``acquire`` would take out of reach."""
        resident = self._residents.get(record.digest)
        if resident is not None and not resident.is_evictable:
            return 0
        return record.num_pages

    def can_acquire(self, record: AdapterRecord) -> bool:
        """True if ``acquire`` would succeed now."""
        resident = self._residents.get(record.digest)
        if resident is not None:
            return True
        has_slot = self._num_slots_used - len(self._free_slots) < self.num_slots or self._order.first() is not None
        return has_slot and record.num_pages <= self.idle_pages.num_available("adapter")

    def acquire(self, digest: AdapterDigest) -> int | None:
        """Keep the adapter in the arena for one more user; load it if it is not there, evicting idle ones.

        Returns its slot; None, and nothing happens, if there are not enough pages or slots. Raises AdapterNotFound.
        """
        resident = self._residents.get(digest) or self._place(self._lookup(digest))
        if resident is None:
            return None
        self._leave_order(resident)
        resident.num_users += 1
        return resident.slot

    def release(self, digest: AdapterDigest) -> None:
        """One user less. The adapter stays until its pages are wanted, or leaves if it was forgotten."""
        resident = self._residents[digest]
        assert resident.num_users > 0, f"adapter {digest} was released more often than acquired"
        resident.num_users -= 1
        self._enter_order(resident)
        if resident.is_forgotten and resident.num_users == 0:
            self._evict(resident)

    def pin(self, digest: AdapterDigest) -> None:
        """Load the adapter if necessary and never evict it.

        Raises AdapterNotFound, and AdapterError if there is no room for it beside what runs and what is pinned.
        """
        resident = self._residents.get(digest)
        if resident is None:
            record = self._lookup(digest)
            resident = self._place(record)
            if resident is None:
                raise AdapterError(
                    f"adapter {digest} needs {record.num_pages} pages and a slot; {self._arena.num_free} pages are free and "
                    f"{self.num_idle_pages} held by idle adapters, {self.num_resident} of {self.num_slots} slots are taken"
                )
        if not resident.is_pinned:
            self._leave_order(resident)
            resident.is_pinned = True
            resident.is_forgotten = False
            self.num_pinned_pages += len(resident.pages)

    def unpin(self, digest: AdapterDigest) -> None:
        """The adapter may be evicted again. Nothing happens if it is not pinned."""
        resident = self._residents.get(digest)
        if resident is not None and resident.is_pinned:
            resident.is_pinned = False
            self.num_pinned_pages -= len(resident.pages)
            self._enter_order(resident)

    def forget(self, digest: AdapterDigest) -> bool:
        """Free the adapter's pages: now if nobody uses it, else when the last user releases it. True if it is gone."""
        self._loads_by_digest.pop(digest, None)
        resident = self._residents.get(digest)
        if resident is None:
            return True
        self.unpin(digest)
        if resident.num_users:
            resident.is_forgotten = True
            return False
        self._evict(resident)
        return True

    def discard(self, digest: AdapterDigest) -> None:
        """Its rows could not be copied: take it out, pinned or not. Nobody uses it, and nothing happens if it is gone."""
        resident = self._residents.get(digest)
        if resident is not None:
            assert resident.num_users == 0, f"adapter {digest} is used although its load failed"
            self.unpin(digest)
            self._evict(resident)

    def first_idle_since(self) -> int | None:
        """When the adapter that is to be evicted next became idle."""
        digest = self._order.first()
        return None if digest is None else self._residents[digest].idle_since

    def evict_first(self) -> None:
        """Evict the adapter whose turn it is."""
        digest = self._order.first()
        assert digest is not None, "no adapter is idle"
        self._evict(self._residents[digest])
        self.num_evictions += 1

    def take_loads(self) -> tuple[AdapterLoad, ...]:
        """The loads planned since the last call. The caller sees to it that they happen."""
        if not self._pending:
            return ()
        loads = tuple(self._pending.values())
        self._pending.clear()
        return loads

    def check_integrity(self, users: Collection[AdapterDigest] | None = None) -> None:
        """Assert that slots, pages and counts agree; ``users``: the digest of every acquisition, if known."""
        residents = self._residents.values()
        slots = [resident.slot for resident in residents]
        assert sorted(slots + self._free_slots) == list(range(self._num_slots_used)), "a slot is lost or doubled"
        assert len(slots) <= self.num_slots
        for resident in residents:
            assert len(resident.pages) == resident.record.num_pages
            assert tuple(resident.pages) == tuple(self._arena.pages_of(resident.owner)), "arena and residency differ"
            assert not (resident.is_forgotten and resident.num_users == 0), "a forgotten adapter stayed"
        held = {owner.name for owner in self._arena.owners("adapter")}
        assert held == {r.record.digest for r in residents if r.pages}, "an adapter's pages have no resident"
        assert self.num_idle_pages == sum(len(r.pages) for r in residents if r.is_evictable)
        assert self.num_pinned_pages == sum(len(r.pages) for r in residents if r.is_pinned)
        assert self._pending.keys() <= self._residents.keys(), "a load was planned for an adapter that is gone"
        if users is not None:
            counted = {r.record.digest: r.num_users for r in residents if r.num_users}
            assert counted == {digest: list(users).count(digest) for digest in set(users)}, "users are miscounted"

    def _place(self, record: AdapterRecord) -> _Resident | None:
        """Find a slot and pages, evicting idle adapters, and plan the load. It enters idle."""
        if not self.can_acquire(record):
            return None
        if self._num_slots_used - len(self._free_slots) >= self.num_slots:
            self.evict_first()
        self.idle_pages.reclaim(record.num_pages, "adapter")
        if self._free_slots:
            slot = heapq.heappop(self._free_slots)
        else:
            slot = self._num_slots_used
            self._num_slots_used += 1
        pages = self._arena.allocate(PageOwner("adapter", record.digest), record.num_pages)
        assert pages is not None
        resident = self._residents[record.digest] = _Resident(record, slot, pages)
        self._enter_order(resident)
        self._pending[record.digest] = AdapterLoad(record.digest, slot, pages)
        self.num_loads += 1
        self.loaded_bytes += record.size_bytes
        self._loads_by_digest[record.digest] = self._loads_by_digest.get(record.digest, 0) + 1
        return resident

    def _evict(self, resident: _Resident) -> None:
        """Take an idle adapter out. A load that nobody has taken yet never happens."""
        digest = resident.record.digest
        self._leave_order(resident)
        self._arena.free(resident.owner)
        heapq.heappush(self._free_slots, resident.slot)
        del self._residents[digest]
        self._pending.pop(digest, None)

    def _enter_order(self, resident: _Resident) -> None:
        if resident.is_evictable:
            resident.idle_since = self.idle_pages.tick()
            self._order.add(resident.record)
            self.num_idle_pages += len(resident.pages)

    def _leave_order(self, resident: _Resident) -> None:
        if resident.is_evictable:
            self._order.remove(resident.record.digest)
            self.num_idle_pages -= len(resident.pages)
