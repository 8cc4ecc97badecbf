"""Pages of prefixes that were computed before, kept for whoever begins with the same tokens under the same adapter.

A tree per (adapter digest, salt): an edge is the token ids of one full page, a node the page with their K and V.
Token ids are compared, not hashes of them, so a hit is never a collision. The digest is of the adapter's weights,
so neither another adapter nor other weights under the same name can ever meet these pages.

Whoever uses a page uses all pages before it. So a page is idle no later than those after it, and evicting
whatever has been idle longest always takes a leaf.

With a window that is different: a token sees no page before it, so a request gives up its first pages while it uses later ones,
and they may be evicted before those. Their nodes stay, hollow, as long as a page follows; a prefix is found wherever the pages
that its next token sees are there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.arena import Arena, OwnerKind, PageOwner
from evenflow.serving.memory.idle_pages import IdlePages
from evenflow.serving.memory.page_table import first_seen_page

_Edge = tuple[int, ...]
_HOLLOW = -1


class CacheKey(NamedTuple):
    """What must be equal, beside the token ids, before K and V may be shared. Clients with different ``salt`` share nothing."""

    adapter: AdapterDigest | None
    salt: str = ""


class CachedPage:
    """One full page of a prefix. ``num_users`` requests have it in their page tables."""

    __slots__ = ("_edge", "_parent", "children", "idle_since", "is_forgotten", "num_users", "owner", "page")

    def __init__(self, edge: _Edge, parent: CachedPage | None, page: int, owner: PageOwner) -> None:
        self._edge = edge
        self._parent = parent
        self.page = page
        self.owner = owner
        self.children: dict[_Edge, CachedPage] = {}
        self.num_users = 0
        self.idle_since = 0
        self.is_forgotten = False
        """True once no prefix leads to it any more; it is freed when its last user releases it."""

    @property
    def is_hollow(self) -> bool:
        """True if its page was evicted, though others follow it."""
        return self.page < 0

    @property
    def parent(self) -> CachedPage | None:
        """The page before it; None for a root, which has no page."""
        return self._parent

    def unlink(self) -> None:
        """Nobody finds it any more."""
        if self._parent is not None:
            self._parent.children.pop(self._edge, None)


class PrefixCache:
    """Finds, lends, takes over and evicts pages. Bookkeeping only; an ``IdleHolder`` of ``idle_pages``.

    Users of a chain begin at ``first_needed``: pages before it are neither acquired nor released.
    """

    def __init__(self, arena: Arena, idle_pages: IdlePages, page_tokens: int, window: int | None = None) -> None:
        self._arena = arena
        self.window = window
        """How many tokens a token sees in every layer, itself included; None: in some layer all before it."""
        self.kind: OwnerKind = "cache"
        self._idle_pages = idle_pages
        self._page_tokens = page_tokens
        self._roots: dict[CacheKey, CachedPage] = {}
        self._key_by_root: dict[CachedPage, CacheKey] = {}
        self._idle: OrderedDict[CachedPage, None] = OrderedDict()
        self._num_published = 0
        self.version = 0
        """A number that changes whenever ``match`` could find more or fewer pages than before."""
        self.num_evictions = 0
        idle_pages.add_holder(self)

    @property
    def num_pages(self) -> int:
        """Pages the cache owns, those in use included."""
        return self._arena.num_owned("cache")

    @property
    def num_idle_pages(self) -> int:
        """Pages that no running request uses."""
        return len(self._idle)

    def match(self, key: CacheKey, token_ids: Sequence[int]) -> list[CachedPage]:
        """The longest chain that ``token_ids`` begin with and that can be gone on from. Changes nothing. O(tokens).

        Only with a window can pages be hollow in it, and none from ``first_needed(len(chain))`` on is.
        """
        node = self._roots.get(key)
        chain: list[CachedPage] = []
        size = self._page_tokens
        for start in range(0, len(token_ids) - size + 1, size):
            if node is None:
                break
            node = node.children.get(tuple(token_ids[start : start + size]))
            if node is not None:
                chain.append(node)
        return chain if self.window is None else chain[: self._num_usable(chain)]

    def first_needed(self, num_pages: int) -> int:
        """The first page that anything behind ``num_pages`` full pages sees."""
        return first_seen_page(num_pages * self._page_tokens, self.window, self._page_tokens)

    def _num_usable(self, chain: Sequence[CachedPage]) -> int:
        """How many pages of the chain, at most, can be gone on from."""
        usable = whole = 0
        for count, node in enumerate(chain, start=1):
            whole = 0 if node.is_hollow else whole + 1
            if whole >= count - self.first_needed(count):
                usable = count
        return usable

    def acquire(self, chain: Sequence[CachedPage]) -> None:
        """One more user for each page of ``chain``, which begins at the root or where ``first_needed`` says."""
        for node in chain:
            if node.num_users == 0:
                del self._idle[node]
            node.num_users += 1

    def release(self, chain: Sequence[CachedPage]) -> None:
        """Each page of the chain has one user fewer. Pages without users stay, idle, until their memory is wanted; then the
        last page of the chain goes first.
        """
        for node in reversed(chain):
            assert node.num_users > 0, f"{node.owner} was released more often than acquired"
            node.num_users -= 1
            if node.num_users == 0:
                if node.is_forgotten:
                    self._arena.free(node.owner)
                else:
                    node.idle_since = self._idle_pages.tick()
                    self._idle[node] = None

    def publish(
        self, key: CacheKey, chain: list[CachedPage], owner: PageOwner, pages: Sequence[int], token_ids: Sequence[int]
    ) -> None:
        """Take over full ``pages`` of ``owner`` that follow the acquired ``chain`` and hold ``token_ids``; extend the chain.

        The owner goes on using them, as it uses the rest of the chain. Where the same tokens are cached already in an
        idle page, that one is freed for the new; where it is in use, nothing more is taken over: nobody may keep from
        being freed what it does not use.
        """
        size = self._page_tokens
        assert len(token_ids) == len(pages) * size, "only full pages can be shared"
        if not pages or (chain and chain[-1].is_forgotten):
            return
        node = chain[-1] if chain else self._roots.get(key)
        if node is None:
            node = self._roots[key] = CachedPage((), None, -1, PageOwner("cache", ""))
            self._key_by_root[node] = key
        for index, page in enumerate(pages):
            edge = tuple(token_ids[index * size : (index + 1) * size])
            child = node.children.get(edge)
            if child is None:
                self._num_published += 1
                child = CachedPage(edge, node, page, PageOwner("cache", str(self._num_published)))
                self._arena.hand_over(page, owner, child.owner)
                node.children[edge] = child
                child.num_users = 1
            elif child.num_users == 0:
                if child.is_hollow:
                    child.num_users = 1
                else:
                    self.acquire((child,))
                    self._arena.free(child.owner)
                self._arena.hand_over(page, owner, child.owner)
                child.page = page
            else:
                break
            chain.append(child)
            node = child
        self.version += 1

    def forget(self, adapter: AdapterDigest) -> None:
        """Free everything computed under ``adapter``: idle pages now, others when their last user releases them."""
        for key in [key for key in self._roots if key.adapter == adapter]:
            root = self._roots.pop(key)
            del self._key_by_root[root]
            for node in list(_below(root)):
                node.is_forgotten = True
                if node.num_users == 0 and not node.is_hollow:
                    del self._idle[node]
                    self._arena.free(node.owner)
        self.version += 1

    def clear(self) -> int:
        """Evict everything idle. Returns how many pages that was."""
        count = len(self._idle)
        while self._idle:
            self.evict_first()
        return count

    def first_idle_since(self) -> int | None:
        """When the page that has been idle longest became so."""
        node = next(iter(self._idle), None)
        return None if node is None else node.idle_since

    def evict_first(self) -> None:
        """Free the page that has been idle longest. Without windows no cached page follows it in the tree."""
        node, _ = self._idle.popitem(last=False)
        self._arena.free(node.owner)
        self.num_evictions += 1
        self.version += 1
        if node.children:
            assert self.window is not None, "a page was evicted before those after it"
            node.page = _HOLLOW
            return
        self._unlink(node)

    def _unlink(self, node: CachedPage) -> None:
        """Take a leaf out of its tree, with the hollow nodes that led to nothing else, and perhaps the tree."""
        node.unlink()
        parent = node.parent
        while parent is not None and parent.parent is not None and parent.is_hollow and not parent.children:
            parent.unlink()
            parent = parent.parent
        if parent in self._key_by_root and not parent.children:
            del self._roots[self._key_by_root.pop(parent)]

    def check_integrity(self, chains: Sequence[Sequence[CachedPage]] | None = None) -> None:
        """Assert that trees, arena and idle pages agree; ``chains``: what every user holds acquired, if known."""
        nodes = [node for root in self._roots.values() for node in _below(root)]
        pages = [node.page for node in nodes if not node.is_hollow]
        assert len(set(pages)) == len(pages), "two prefixes share a page"
        for node in nodes:
            owned = () if node.is_hollow else (node.page,)
            assert tuple(self._arena.pages_of(node.owner)) == owned, f"{node.owner} does not own its page"
            is_idle = node.num_users == 0 and not node.is_hollow
            assert is_idle == (node in self._idle), f"{node.owner} is in the wrong list"
            if node.is_hollow:
                assert self.window is not None, f"{node.owner} has no page"
                assert node.children, f"{node.owner} has no page and leads nowhere"
                assert node.num_users == 0, f"{node.owner} is used without a page"
            for child in node.children.values():
                assert self.window is not None or child.num_users <= node.num_users, "used without the page before it"
        assert all(root.children for root in self._roots.values()), "an empty tree was kept"
        assert {key: root for root, key in self._key_by_root.items()} == self._roots
        assert set(self._idle) <= set(nodes), "an idle page cannot be found"
        ticks = [node.idle_since for node in self._idle]
        assert ticks == sorted(ticks), "idle pages are out of order"
        if chains is not None:
            users: dict[CachedPage, int] = {}
            for chain in chains:
                for node in chain:
                    users[node] = users.get(node, 0) + 1
            assert {node: node.num_users for node in (*nodes, *users) if node.num_users} == users, "users are miscounted"
            reachable = {node.owner for node in (*nodes, *users) if not node.is_hollow}
            assert reachable == set(self._arena.owners("cache")), "a cached page is lost"


def _below(root: CachedPage) -> Iterator[CachedPage]:
    """All pages of a tree."""
    stack = list(root.children.values())
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())


__all__ = ["CacheKey", "CachedPage", "PrefixCache"]
