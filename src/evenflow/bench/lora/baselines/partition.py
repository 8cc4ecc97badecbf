"""An arena cut in two for good: KV cache on one side, adapters on the other. S-LoRA's ablation without Unified Paging.

The same number of pages as the unified arena, the same books; but what one side does not need the other cannot have.
"""

from __future__ import annotations

from evenflow.base.errors import ConfigError
from evenflow.serving.memory.arena import Arena, OwnerKind


class PartitionedArena(Arena):
    """``num_pages`` pages, the last ``num_adapter_pages`` of them for adapters alone, the rest for requests and cache.

    Raises ConfigError unless both sides have a page.
    """

    def __init__(self, num_pages: int, num_adapter_pages: int) -> None:
        super().__init__(num_pages)
        if not 1 <= num_adapter_pages < num_pages:
            raise ConfigError(f"{num_adapter_pages} of {num_pages} pages are for adapters; allowed: 1 to {num_pages - 1}")
        self.num_adapter_pages = num_adapter_pages
        # The free list is a stack with the lowest page on top.
        self._free_for_adapters, self._free = self._free[:num_adapter_pages], self._free[num_adapter_pages:]

    @property
    def num_free(self) -> int:
        """Pages that nobody owns, on both sides."""
        return len(self._free) + len(self._free_for_adapters)

    def num_pages_for(self, kind: OwnerKind) -> int:
        """Pages of that kind's side."""
        return self.num_adapter_pages if kind == "adapter" else self.num_pages - self.num_adapter_pages

    def reusable(self, num_pages: int, freed_by: OwnerKind, wanted_by: OwnerKind) -> int:
        """All of them on one side, none across."""
        return num_pages if (freed_by == "adapter") == (wanted_by == "adapter") else 0

    def could_hold(self, **num_pages: int) -> bool:
        """True if each side alone could."""
        num_adapter_pages = num_pages.pop("adapter", 0)
        return num_adapter_pages <= self.num_adapter_pages and sum(num_pages.values()) <= self.num_pages_for("request")

    def check_integrity(self) -> None:
        """Assert what an arena asserts, and that no owner has a page on the other kind's side."""
        super().check_integrity()
        first = self.num_pages - self.num_adapter_pages
        for owner, pages in self._pages.items():
            assert all((page >= first) == (owner.kind == "adapter") for page in pages), f"{owner} is on the wrong side"

    def _free_list(self, kind: OwnerKind) -> list[int]:
        return self._free_for_adapters if kind == "adapter" else self._free

    def _all_free(self) -> list[int]:
        return self._free + self._free_for_adapters
