"""Which page belongs to whom. The one place where pages change hands; knows no bytes, tensors or tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

OwnerKind = Literal["request", "adapter", "cache"]


class PageOwner(NamedTuple):
    """Who may hold pages: a request (its KV), an adapter (its rows) or a cache entry."""

    kind: OwnerKind
    name: str


class Arena:
    """``num_pages`` equal pages, each free or owned by one owner. O(1) per page; never touches the pages themselves."""

    def __init__(self, num_pages: int) -> None:
        assert num_pages >= 1, f"an arena of {num_pages} pages"
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._pages: dict[PageOwner, list[int]] = {}
        self._num_owned: dict[OwnerKind, int] = {"request": 0, "adapter": 0, "cache": 0}

    @property
    def num_free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    def num_free_for(self, kind: OwnerKind) -> int:
        """Pages that an owner of this kind could be given now."""
        return len(self._free_list(kind))

    def num_pages_for(self, kind: OwnerKind) -> int:
        """Pages that all owners of this kind together could hold if owners of other kinds held none."""
        return self.num_pages

    def reusable(self, num_pages: int, freed_by: OwnerKind, wanted_by: OwnerKind) -> int:
        """How many of ``num_pages`` pages that owners of one kind give back can go to owners of another kind: here, all of
        them.
        """
        return num_pages

    def could_hold(self, **num_pages: int) -> bool:
        """True if so many pages of each kind (``request=2, adapter=5``) fit together when nobody else holds any."""
        return sum(num_pages.values()) <= self.num_pages

    def num_owned(self, kind: OwnerKind) -> int:
        """Pages owned by all owners of one kind."""
        return self._num_owned[kind]

    def allocate(self, owner: PageOwner, num_pages: int) -> list[int] | None:
        """Give ``owner`` that many more pages and return them; None, and nothing happens, if there are not enough."""
        free = self._free_list(owner.kind)
        if num_pages > len(free):
            return None
        if num_pages == 0:
            return []
        pages = free[: -num_pages - 1 : -1]
        del free[-num_pages:]
        held = self._pages.get(owner)
        if held is None:
            self._pages[owner] = list(pages)
        else:
            held.extend(pages)
        self._num_owned[owner.kind] += num_pages
        return pages

    def free(self, owner: PageOwner) -> int:
        """Take back everything ``owner`` holds. Returns how many pages that was."""
        pages = self._pages.pop(owner, None)
        if pages is None:
            return 0
        self._release(owner, pages)
        return len(pages)

    def free_tail(self, owner: PageOwner, num_kept: int) -> int:
        """Take back all but the first ``num_kept`` pages of ``owner``. Returns how many pages that was."""
        if num_kept == 0:
            return self.free(owner)
        pages = self._pages.get(owner, [])
        tail = pages[num_kept:]
        if tail:
            del pages[num_kept:]
            self._release(owner, tail)
        return len(tail)

    def free_head(self, owner: PageOwner, num_pages: int) -> None:
        """Take back the first ``num_pages`` pages of ``owner``, which holds at least so many. O(pages of owner)."""
        pages = self._pages[owner]
        assert 0 < num_pages <= len(pages), f"{owner} holds {len(pages)} pages, not {num_pages}"
        if num_pages == len(pages):
            self.free(owner)
            return
        head = pages[:num_pages]
        del pages[:num_pages]
        self._release(owner, head)

    def hand_over(self, page: int, owner: PageOwner, new_owner: PageOwner) -> None:
        """Make ``new_owner``, who holds nothing yet, the owner of a page of ``owner``. O(pages of owner)."""
        assert new_owner not in self._pages, f"{new_owner} holds pages already"
        pages = self._pages[owner]
        pages.remove(page)
        if not pages:
            del self._pages[owner]
        self._pages[new_owner] = [page]
        self._num_owned[owner.kind] -= 1
        self._num_owned[new_owner.kind] += 1

    def pages_of(self, owner: PageOwner) -> Sequence[int]:
        """The pages of ``owner``, in the order in which it got them."""
        return tuple(self._pages.get(owner, ()))

    def owners(self, kind: OwnerKind) -> Iterator[PageOwner]:
        """Everyone of that kind who holds pages."""
        return (owner for owner in self._pages if owner.kind == kind)

    def check_integrity(self) -> None:
        """Assert that every page is either free or owned by exactly one owner."""
        owned = [page for pages in self._pages.values() for page in pages]
        assert sorted(owned + self._all_free()) == list(range(self.num_pages)), "a page is lost, doubled or foreign"
        assert all(self._pages.values()), "an owner without pages was kept"
        for kind, count in self._num_owned.items():
            held = sum(len(pages) for owner, pages in self._pages.items() if owner.kind == kind)
            assert held == count, f"{kind} pages: counted {count}, held {held}"

    def _free_list(self, kind: OwnerKind) -> list[int]:
        """The list of free pages that owners of this kind take from and give back to."""
        return self._free

    def _all_free(self) -> list[int]:
        return self._free

    def _release(self, owner: PageOwner, pages: list[int]) -> None:
        self._free_list(owner.kind).extend(reversed(pages))
        self._num_owned[owner.kind] -= len(pages)
