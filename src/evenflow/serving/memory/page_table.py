"""The pages of one request, in the order of its tokens: page i holds tokens [i page_tokens, (i + 1) page_tokens)."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.serving.memory.arena import Arena, PageOwner


def pages_for(num_tokens: int, page_tokens: int) -> int:
    """Pages that hold ``num_tokens`` tokens."""
    return -(-num_tokens // page_tokens)


class PageTable:
    """Grows with its request's tokens. Owns its list; the arena knows who holds which page.

    The first pages may be borrowed from the prefix cache, and pages that the cache takes over stay in the table.
    """

    __slots__ = ("_arena", "_page_tokens", "capacity", "owner", "pages")

    def __init__(self, arena: Arena, request_id: str, page_tokens: int) -> None:
        self._arena = arena
        self.owner = PageOwner("request", request_id)
        self._page_tokens = page_tokens
        self.pages: list[int] = []
        """A plan may hold this very list: it is only appended to, and ``release`` starts a new one."""
        self.capacity = 0
        """Tokens that fit the pages held now."""

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

    def borrow(self, pages: Sequence[int]) -> None:
        """Begin an empty table with pages that the prefix cache owns."""
        assert not self.pages, f"{self.owner} has pages already"
        self.pages.extend(pages)
        self.capacity = len(self.pages) * self._page_tokens

    def first(self, num_tokens: int) -> Sequence[int]:
        """The pages up to and including the one of token ``num_tokens - 1``."""
        count = pages_for(num_tokens, self._page_tokens)
        return self.pages if count == len(self.pages) else self.pages[:count]

    def release(self) -> int:
        """Give back all pages that the request itself owns, not the borrowed ones. Returns how many there were."""
        self.pages = []
        self.capacity = 0
        return self._arena.free(self.owner)

    def check_integrity(self, num_foreign: int = 0) -> None:
        """Assert that the arena agrees; the first ``num_foreign`` pages belong to the prefix cache."""
        assert self.pages[num_foreign:] == list(self._arena.pages_of(self.owner)), f"pages of {self.owner} differ"
        assert self.capacity == len(self.pages) * self._page_tokens
