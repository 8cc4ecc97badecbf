"""One economy for what may be taken back: idle adapters and idle pages of the prefix cache.

Each holder knows which of its idle things it would give up first; of these, the one that has been idle longest is evicted
(S-LoRA's unified paging, section 5, with cached prefixes as a third owner of pages).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from evenflow.serving.memory.arena import Arena, OwnerKind


class IdleHolder(Protocol):
    """Somebody who keeps pages that nobody needs now."""

    @property
    def kind(self) -> OwnerKind:
        """Which kind of owner the holder's pages have."""
        ...

    @property
    def num_idle_pages(self) -> int:
        """Pages that evicting everything idle would free."""
        ...

    def first_idle_since(self) -> int | None:
        """The tick at which the holder's next victim became idle; None if nothing of it is idle."""
        ...

    def evict_first(self) -> None:
        """Free the pages of the next victim."""
        ...


class IdlePages:
    """Who holds idle pages, and in which order they go. Counts time in ticks: one for each thing that becomes idle."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._holders: list[IdleHolder] = []
        self._num_ticks = 0

    def add_holder(self, holder: IdleHolder) -> None:
        """From now on ``holder`` gives pages too."""
        self._holders.append(holder)

    def tick(self) -> int:
        """The present tick, for something that becomes idle now."""
        self._num_ticks += 1
        return self._num_ticks

    def num_available(self, wanted_by: OwnerKind) -> int:
        """Pages that owners of this kind could be given, free or idle."""
        arena = self._arena
        idle = sum(arena.reusable(holder.num_idle_pages, holder.kind, wanted_by) for holder in self._holders)
        return arena.num_free_for(wanted_by) + idle

    def reclaim(self, num_pages: int, wanted_by: OwnerKind, *, is_spared: Callable[[IdleHolder], bool] | None = None) -> bool:
        """Evict until owners of a kind can be given ``num_pages`` pages. False, and nothing happens, if that cannot be.

        ``is_spared`` says of a holder that its next victim must stay; it is asked before each eviction. Whoever passes it has
        made sure that the others' pages are enough.
        """
        arena = self._arena
        if arena.num_free_for(wanted_by) >= num_pages:
            return True
        if self.num_available(wanted_by) < num_pages:
            return False
        while arena.num_free_for(wanted_by) < num_pages:
            self._longest_idle(wanted_by, is_spared).evict_first()
        return True

    def _longest_idle(self, wanted_by: OwnerKind, is_spared: Callable[[IdleHolder], bool] | None) -> IdleHolder:
        victim, since = None, 0
        for holder in self._holders:
            tick = holder.first_idle_since() if self._arena.reusable(1, holder.kind, wanted_by) else None
            if tick is not None and (victim is None or tick < since) and not (is_spared is not None and is_spared(holder)):
                victim, since = holder, tick
        assert victim is not None, "pages were said to be idle"
        return victim
