"""The tree of cached pages against a list of everything ever published."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.arena import Arena, PageOwner
from evenflow.serving.memory.idle_pages import IdlePages
from evenflow.serving.memory.prefix_cache import CacheKey, PrefixCache

PAGE = 2
KEYS = [CacheKey(None), CacheKey(AdapterDigest("x")), CacheKey(AdapterDigest("x"), "salt"), CacheKey(AdapterDigest("y"))]
TEXTS = st.lists(st.integers(0, 1), min_size=0, max_size=9)


class Session:
    """A request as the cache sees it."""

    def __init__(self, name, key, text, chain):
        self.owner, self.key, self.text, self.chain = PageOwner("request", name), key, text, chain
        self.pages: list[int] = []
        self.dropped = 0

    @property
    def used(self):
        return self.chain[self.dropped :]


class PrefixCacheMachine(RuleBasedStateMachine):
    @initialize(window=st.sampled_from([None, None, 1, 3, 4]))
    def begin(self, window) -> None:
        self.arena = Arena(10)
        self.idle_pages = IdlePages(self.arena)
        self.cache = PrefixCache(self.arena, self.idle_pages, PAGE, window)
        self.sessions: list[Session] = []
        self.content: dict[int, tuple] = {}
        self.num_sessions = 0

    @rule(key=st.sampled_from(KEYS), text=TEXTS)
    def start(self, key, text):
        chain = self.cache.match(key, text)
        needed = self.cache.first_needed(len(chain))
        for depth, node in list(enumerate(chain, start=1))[needed:]:
            assert self.content[node.page] == (key, tuple(text[: depth * PAGE])), "found pages of another text or key"
        self.cache.acquire(chain[needed:])
        missing = len(text) // PAGE - len(chain)
        self.num_sessions += 1
        session = Session(f"s{self.num_sessions}", key, text, chain)
        session.dropped = needed
        if not self.idle_pages.reclaim(missing, "request"):
            self.cache.release(session.used)
            return
        pages = self.arena.allocate(session.owner, missing)
        assert pages is not None
        for depth, page in enumerate(pages, start=len(chain) + 1):
            self.content[page] = (key, tuple(text[: depth * PAGE]))
        session.pages = [node.page for node in chain] + pages
        self.sessions.append(session)

    @rule(data=st.data(), count=st.integers(1, 4))
    def publish(self, data, count):
        if self.sessions:
            session = data.draw(st.sampled_from(self.sessions))
            first = len(session.chain)
            if session.dropped and session.dropped >= first:
                return
            last = min(first + count, len(session.text) // PAGE)
            self.cache.publish(
                session.key, session.chain, session.owner, session.pages[first:last], session.text[first * PAGE : last * PAGE]
            )

    @rule(data=st.data())
    def drop(self, data):
        if self.sessions and self.cache.window is not None:
            session = data.draw(st.sampled_from(self.sessions))
            dropped = data.draw(st.integers(session.dropped, self.cache.first_needed(len(session.text) // PAGE)))
            self.cache.release(session.chain[session.dropped : dropped])
            own = max(dropped, len(session.chain)) - max(session.dropped, len(session.chain))
            if own:
                self.arena.free_head(session.owner, own)
            session.dropped = dropped

    @rule(data=st.data())
    def end(self, data):
        if self.sessions:
            session = self.sessions.pop(data.draw(st.integers(0, len(self.sessions) - 1)))
            self.arena.free(session.owner)
            self.cache.release(session.used)
            published = len(session.chain)
            if session.used and session.dropped <= self.cache.first_needed(published) and not session.chain[-1].is_forgotten:
                found = self.cache.match(session.key, session.text[: published * PAGE])
                assert len(found) == published, "just released, and not found"

    @rule(adapter=st.sampled_from(["x", "y"]))
    def forget(self, adapter):
        self.cache.forget(AdapterDigest(adapter))
        for key in KEYS:
            if key.adapter == adapter:
                for text in ([0, 0], [0, 1], [1, 0], [1, 1]):
                    assert not self.cache.match(key, text)

    @rule()
    def clear(self):
        idle = self.cache.num_idle_pages
        assert self.cache.clear() == idle
        assert self.cache.num_idle_pages == 0

    @rule(count=st.integers(1, 10))
    def somebody_else_wants_room(self, count):
        before = self.arena.num_free + self.cache.num_idle_pages
        assert self.idle_pages.reclaim(count, "request") == (count <= before)
        assert self.arena.num_free + self.cache.num_idle_pages == before

    @invariant()
    def books_agree(self):
        self.arena.check_integrity()
        self.cache.check_integrity([session.used for session in self.sessions])

    def teardown(self):
        for session in getattr(self, "sessions", []):
            self.arena.free(session.owner)
            self.cache.release(session.used)
        self.cache.clear()
        assert self.arena.num_free == self.arena.num_pages


PrefixCacheMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestPrefixCache = PrefixCacheMachine.TestCase


def test_with_a_window_the_end_of_a_prefix_is_found_without_its_beginning():
    arena = Arena(4)
    idle_pages = IdlePages(arena)
    cache = PrefixCache(arena, idle_pages, PAGE, window=3)
    owner, text, chain = PageOwner("request", "r"), [1, 2, 3, 4, 5, 6, 7, 8], []
    pages = arena.allocate(owner, 4)
    cache.publish(KEYS[0], chain, owner, pages, text)
    cache.release(chain[:3])  # behind 8 tokens nothing sees more than the last page
    assert (cache.first_needed(3), cache.first_needed(4)) == (2, 3)
    assert idle_pages.reclaim(2, "request")
    assert [node.is_hollow for node in chain] == [False, True, True, False] or cache.num_evictions == 2
    assert cache.match(KEYS[0], text) == chain, "its last page is there, which is all that is needed"
    assert len(cache.match(KEYS[0], text[:7])) < 3, "the third page is needed and gone"
    cache.release(chain[3:])
    assert cache.clear() == 2
    assert arena.num_free == 4
    cache.check_integrity([])


def test_what_has_been_idle_longest_goes_first_adapters_and_prefixes_alike():
    class Shelf:
        """Keeps one thing, idle since it was put there."""

        kind = "request"

        def __init__(self, name, since, log):
            self.name, self.since, self.log, self.num_idle_pages = name, since, log, 1

        def first_idle_since(self):
            return self.since if self.num_idle_pages else None

        def evict_first(self):
            self.num_idle_pages = 0
            self.log.append(self.name)
            arena.free(PageOwner("request", self.name))

    arena, log = Arena(3), []
    idle_pages = IdlePages(arena)
    for name in ("a", "b", "c"):
        arena.allocate(PageOwner("request", name), 1)
    for name, since in (("a", 7), ("b", 3), ("c", 5)):
        idle_pages.add_holder(Shelf(name, since, log))
    assert not idle_pages.reclaim(4, "request")
    assert log == []
    assert idle_pages.reclaim(2, "request")
    assert log == ["b", "c"]
