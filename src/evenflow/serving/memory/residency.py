"""Which adapter is in the arena, in which slot, and who needs it there. Bookkeeping only, no bytes move here.

An adapter stays when its last request ends and is evicted when its pages are wanted (S-LoRA, section 5,
dropped it at once). An adapter that a running request uses, or that was pinned, is never evicted.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator

from evenflow.base.errors import AdapterError
from evenflow.serving.core.adapter import AdapterRecord
from evenflow.serving.core.plan import AdapterLoad
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.arena import Arena, OwnerKind, PageOwner
from evenflow.serving.memory.eviction import EvictionOrder, LeastRecentlyUsed
from evenflow.serving.memory.idle_pages import IdlePages
from evenflow.serving.memory.resident import Resident


class Residency:
    """Loads, pins and evicts adapters. ``lookup`` answers with the record of a digest, or raises AdapterNotFound.

    A load is only planned here: ``take_loads`` hands the planned ones over, once, and whoever takes them
    copies the weights before anything computes with them. A prefetched adapter is placed whole and loaded in
    parts; until it is used it is as idle, and as easily evicted, as any other.
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
        """Books of all idle pages, of adapters and of other holders."""
        self.idle_pages.add_holder(self)
        self._lookup = lookup
        self.num_slots = arena.num_pages if num_slots is None else num_slots
        """Adapters that can be resident at once. By default as many as there are pages, which is no limit, since each adapter
        takes at least one.
        """
        self._order = order or LeastRecentlyUsed()
        self._residents: dict[AdapterDigest, Resident] = {}
        self._free_slots: list[int] = []
        self._num_slots_used = 0
        self._pending: dict[AdapterDigest, None] = {}
        self.num_idle_pages = 0
        """Pages that evicting every idle adapter would free."""
        self.num_pinned_pages = 0
        self.num_loads = 0
        self.num_evictions = 0
        self.num_failed_loads = 0
        self.num_pinned = 0
        self.loaded_bytes = 0
        self._prefetched: dict[AdapterDigest, None] = {}
        self._failed: set[AdapterDigest] = set()
        """Adapters whose last load failed: they are not prefetched again until a request has started with them."""
        self.num_prefetched_pages = 0
        """Pages held by adapters that were prefetched and have not been used since."""
        self.num_prefetches = 0
        self.num_wasted_prefetches = 0
        """Prefetched adapters that were evicted before any request used them."""
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
        """True if the adapter has pages in the arena, whether it has been loaded or is about to be."""
        return digest in self._residents

    def is_loaded(self, digest: AdapterDigest) -> bool:
        """True if it is in the arena and no part of it is still to be loaded."""
        resident = self._residents.get(digest)
        return resident is not None and resident.num_taken == len(resident.pages)

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
        self._failed.discard(digest)
        self._order.used(resident.record)
        self._leave_order(resident)
        resident.num_users += 1
        resident.bytes_due = 0
        self._settle(resident)
        self._want(resident, len(resident.pages))
        return resident.slot

    def bytes_due(self, record: AdapterRecord) -> int:
        """What the next ``acquire`` costs in loaded bytes: now, or before in a prefetch that nobody was charged for."""
        resident = self._residents.get(record.digest)
        return record.size_bytes if resident is None else resident.bytes_due

    def num_pages_to_prefetch(self, record: AdapterRecord) -> int:
        """Pages of the adapter that no load has been planned for yet."""
        resident = self._residents.get(record.digest)
        return record.num_pages if resident is None else len(resident.pages) - max(resident.num_taken, resident.num_wanted)

    def prefetch(
        self, record: AdapterRecord, max_pages: int, *, num_reserved: int, is_wanted: Callable[[AdapterDigest], bool]
    ) -> int:
        """Plan the load of up to ``max_pages`` more pages of an adapter that a waiting request needs. Returns how many.

        The adapter takes its place only if ``num_reserved`` pages that KV could take stay free, and for it only
        idle adapters and cached prefixes go that would go first anyway, and no adapter whom ``is_wanted`` names. Else
        nothing happens: 0.
        """
        resident = self._residents.get(record.digest)
        if resident is None:
            if record.digest in self._failed or not self._make_room_for_prefetch(record, num_reserved, is_wanted):
                return 0
            resident = self._place(record)
            assert resident is not None, "room had been made"
            resident.is_prefetched = True
            self._prefetched[record.digest] = None
            self.num_prefetches += 1
            self.num_prefetched_pages += record.num_pages
        before = max(resident.num_taken, resident.num_wanted)
        self._want(resident, min(len(resident.pages), before + max_pages))
        return max(resident.num_taken, resident.num_wanted) - before

    def drop_prefetches(self, is_wanted: Callable[[AdapterDigest], bool]) -> None:
        """For prefetched adapters that no waiting request wants any more: complete ones become ordinary idle adapters, and what
        was loaded in part is dropped.
        """
        for digest in [digest for digest in self._prefetched if not is_wanted(digest)]:
            resident = self._residents[digest]
            if resident.num_taken == len(resident.pages):
                self._settle(resident)
            else:
                self._evict(resident)

    def release(self, digest: AdapterDigest) -> None:
        """The adapter has one user fewer. Without users it stays until its pages are wanted; if it was forgotten, it leaves
        now.
        """
        resident = self._residents[digest]
        assert resident.num_users > 0, f"adapter {digest} was released more often than acquired"
        resident.num_users -= 1
        self._enter_order(resident)
        if resident.is_forgotten and resident.num_users == 0:
            self._evict(resident)
            self._order.forget(digest)

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
            self._settle(resident)
            self._want(resident, len(resident.pages))
            resident.is_pinned = True
            resident.is_forgotten = False
            self.num_pinned += 1
            self.num_pinned_pages += len(resident.pages)

    def unpin(self, digest: AdapterDigest) -> None:
        """The adapter may be evicted again. Nothing happens if it is not pinned."""
        resident = self._residents.get(digest)
        if resident is not None and resident.is_pinned:
            resident.is_pinned = False
            self.num_pinned -= 1
            self.num_pinned_pages -= len(resident.pages)
            self._enter_order(resident)

    def forget(self, digest: AdapterDigest) -> bool:
        """Free the adapter's pages: now if nobody uses it, else when the last user releases it. True if it is gone."""
        self._loads_by_digest.pop(digest, None)
        self._failed.discard(digest)
        resident = self._residents.get(digest)
        if resident is None:
            self._order.forget(digest)
            return True
        self.unpin(digest)
        if resident.num_users:
            resident.is_forgotten = True
            return False
        self._evict(resident)
        self._order.forget(digest)
        return True

    def discard(self, digest: AdapterDigest) -> None:
        """The adapter's factor rows could not be copied: take it out, even if it is pinned. No request uses it. Nothing happens
        if it is not there any more.
        """
        resident = self._residents.get(digest)
        self.num_failed_loads += 1
        self._failed.add(digest)
        if resident is not None:
            assert resident.num_users == 0, f"adapter {digest} is used although its load failed"
            self.unpin(digest)
            self._evict(resident)

    def first_idle_since(self) -> int | None:
        """The tick at which the adapter that would be evicted next became idle."""
        digest = self._order.first()
        return None if digest is None else self._residents[digest].idle_since

    def evict_first(self) -> None:
        """Evict the adapter whose turn it is."""
        digest = self._order.first()
        assert digest is not None, "no adapter is idle"
        self._evict(self._residents[digest])
        self.num_evictions += 1

    def take_loads(self) -> tuple[AdapterLoad, ...]:
        """The loads planned since the last call. The caller must carry them out."""
        if not self._pending:
            return ()
        loads = []
        for digest in self._pending:
            resident = self._residents[digest]
            is_prefetch = resident.num_users == 0
            loads.append(
                AdapterLoad(digest, resident.slot, resident.pages, resident.num_taken, resident.num_wanted, is_prefetch)
            )
            resident.num_taken = resident.num_wanted
        self._pending.clear()
        return tuple(loads)

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
        assert self.num_pinned == sum(r.is_pinned for r in residents)
        assert self._pending.keys() <= self._residents.keys(), "a load was planned for an adapter that is gone"
        prefetched = [r for r in residents if r.is_prefetched]
        assert self._prefetched.keys() == {r.record.digest for r in prefetched}
        assert self.num_prefetched_pages == sum(len(r.pages) for r in prefetched)
        assert all(r.is_evictable for r in prefetched), "a prefetched adapter is used and still counts as prefetched"
        for resident in residents:
            planned = max(resident.num_taken, resident.num_wanted)
            assert planned == len(resident.pages) or resident.is_prefetched, "an adapter in use is not wholly loaded"
            assert (resident.record.digest in self._pending) == (resident.num_wanted > resident.num_taken)
        if users is not None:
            counted = {r.record.digest: r.num_users for r in residents if r.num_users}
            assert counted == {digest: list(users).count(digest) for digest in set(users)}, "users are miscounted"

    def _place(self, record: AdapterRecord) -> Resident | None:
        """Find a slot and pages, evicting idle adapters, and plan the load. The adapter is idle until somebody acquires it."""
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
        resident = self._residents[record.digest] = Resident(record, slot, pages)
        self._enter_order(resident)
        resident.bytes_due = record.size_bytes
        self.num_loads += 1
        self.loaded_bytes += record.size_bytes
        self._loads_by_digest[record.digest] = self._loads_by_digest.get(record.digest, 0) + 1
        return resident

    def _evict(self, resident: Resident) -> None:
        """Take an idle adapter out. If its load has been planned but not yet handed over by ``take_loads``, it is cancelled."""
        digest = resident.record.digest
        self._leave_order(resident)
        self._arena.free(resident.owner)
        heapq.heappush(self._free_slots, resident.slot)
        del self._residents[digest]
        self._pending.pop(digest, None)
        if resident.is_prefetched:
            self.num_wasted_prefetches += 1
            self._settle(resident)

    def _want(self, resident: Resident, num_pages: int) -> None:
        """Note that the next loads must bring the adapter's pages up to the first ``num_pages``."""
        if num_pages > max(resident.num_taken, resident.num_wanted):
            resident.num_wanted = num_pages
            self._pending[resident.record.digest] = None

    def _settle(self, resident: Resident) -> None:
        """Count the adapter as a prefetch no longer: it has been used, or it is an ordinary idle adapter now."""
        if resident.is_prefetched:
            resident.is_prefetched = False
            del self._prefetched[resident.record.digest]
            self.num_prefetched_pages -= len(resident.pages)

    def _make_room_for_prefetch(
        self, record: AdapterRecord, num_reserved: int, is_wanted: Callable[[AdapterDigest], bool]
    ) -> bool:
        """Evict idle adapters that nobody waits for until ``record`` and the reserve fit. False, and nothing happens, else."""
        arena = self._arena
        if self._num_slots_used - len(self._free_slots) >= self.num_slots:
            return False
        # A prefetch takes pages away from the KV cache only if both draw on the same free pages, which a partitioned arena
        # forbids.
        reserve = num_reserved if arena.reusable(record.num_pages, "adapter", "request") else 0
        needed = record.num_pages + reserve
        free, idle = arena.num_free_for("adapter"), self.idle_pages
        reachable = idle.num_available("adapter") - self.num_idle_pages
        for digest in self._order.ranked():
            if reachable >= needed or is_wanted(digest):
                break
            reachable += len(self._residents[digest].pages)
        if free < needed and reachable < needed:
            return False
        return idle.reclaim(needed, "adapter", is_spared=lambda holder: holder is self and self._is_first(is_wanted))

    def _is_first(self, is_wanted: Callable[[AdapterDigest], bool]) -> bool:
        """True if a waiting request wants the adapter that would be evicted next."""
        digest = self._order.first()
        return digest is not None and is_wanted(digest)

    def _enter_order(self, resident: Resident) -> None:
        if resident.is_evictable:
            resident.idle_since = self.idle_pages.tick()
            self._order.add(resident.record)
            self.num_idle_pages += len(resident.pages)

    def _leave_order(self, resident: Resident) -> None:
        if resident.is_evictable:
            self._order.remove(resident.record.digest)
            self.num_idle_pages -= len(resident.pages)
