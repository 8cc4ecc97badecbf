"""The pages of one request, in the order of its tokens: page i holds tokens [i page_tokens, (i + 1) page_tokens)."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.serving.memory.arena import Arena, PageOwner

_DROPPED = 0
"""Stands for a page that is not held any more: a number that is safe to look up."""


def pages_for(num_tokens: int, page_tokens: int) -> int:
    """Pages that hold ``num_tokens`` tokens."""
    return -(-num_tokens // page_tokens)


def first_seen_page(num_tokens: int, window: int | None, page_tokens: int) -> int:
    """The first page that the token behind ``num_tokens`` tokens sees, and none after it less. ``window``: tokens that a token
    sees, itself included; None: all before it.
    """
    return 0 if window is None else max(0, num_tokens + 1 - window) // page_tokens


class PageTable:
    """Grows with its request's tokens. Owns its list; the arena knows who holds which page.

    The first pages may be borrowed from the prefix cache, and pages that the cache takes over stay in the table. Where all
    layers have a window, pages that no later token sees are dropped: what the list says of them means nothing.
    """

    __slots__ = ("_arena", "_page_tokens", "capacity", "num_dropped", "owner", "pages")

    def __init__(self, arena: Arena, request_id: str, page_tokens: int) -> None:
        self._arena = arena
        self.owner = PageOwner("request", request_id)
        self._page_tokens = page_tokens
        self.pages: list[int] = []
        """A plan may hold this very list: it is only appended to, what is dropped is not read by any plan, and ``release``
        starts a new one."""
        self.num_dropped = 0
        """The first pages of the list, which are held no more."""
        self.capacity = 0
        """Tokens that fit the pages, those dropped included."""

    def num_missing(self, num_tokens: int) -> int:
        """Pages that are missing to hold ``num_tokens`` tokens."""
        return max(0, pages_for(num_tokens, self._page_tokens) - len(self.pages))

    def grow(self, num_tokens: int) -> bool:
        """Hold ``num_tokens`` tokens. False, and nothing happens, if the arena has too few free pages."""
        missing = self.num_missing(num_tokens)
        if missing:
            pages = self._arena.allocate(self.owner, missing)
            if pages is None:
                return False
            self.pages.extend(pages)
            self.capacity = len(self.pages) * self._page_tokens
        return True

    def borrow(self, pages: Sequence[int], num_dropped: int = 0) -> None:
        """Begin an empty table with pages that the prefix cache owns, behind ``num_dropped`` that nobody will see."""
        assert not self.pages, f"{self.owner} has pages already"
        self.pages.extend([_DROPPED] * num_dropped)
        self.pages.extend(pages)
        self.num_dropped = num_dropped
        self.capacity = len(self.pages) * self._page_tokens

    def drop(self, num_dropped: int, num_foreign: int) -> None:
        """Hold the first ``num_dropped`` pages no more; of these, the first ``num_foreign`` are the prefix cache's."""
        num_own = max(num_dropped, num_foreign) - max(self.num_dropped, num_foreign)
        if num_own > 0:
            self._arena.free_head(self.owner, num_own)
        for index in range(self.num_dropped, num_dropped):
            self.pages[index] = _DROPPED
        self.num_dropped = max(self.num_dropped, num_dropped)

    def first(self, num_tokens: int) -> Sequence[int]:
        """The pages up to and including the one of token ``num_tokens - 1``."""
        count = pages_for(num_tokens, self._page_tokens)
        return self.pages if count == len(self.pages) else self.pages[:count]

    def release(self) -> int:
        """Give back all pages that the request itself owns, not the borrowed ones. Returns how many there were."""
        self.pages = []
        self.num_dropped = 0
        self.capacity = 0
        return self._arena.free(self.owner)

    def check_integrity(self, num_foreign: int = 0) -> None:
        """Assert that the arena agrees; the first ``num_foreign`` pages belong to the prefix cache."""
        own = self.pages[max(num_foreign, self.num_dropped) :]
        assert own == list(self._arena.pages_of(self.owner)), f"pages of {self.owner} differ"
        assert self.capacity == len(self.pages) * self._page_tokens
