"""The requests that run, with the pages and the adapter each of them holds. Knows no order and no policy."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from evenflow.fairness.books.cost import Service
from evenflow.serving.core.adapter import AdapterRecord
from evenflow.serving.core.plan import NO_ADAPTER_SLOT, PlannedSequence, SampleSpec
from evenflow.serving.core.request import Request, RequestId
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.page_table import PageTable, first_seen_page, pages_for
from evenflow.serving.memory.prefix_cache import CachedPage, CacheKey, PrefixCache
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler.admission import MemoryView
from evenflow.serving.scheduler.tallies import Tally

DECODED = Service(decode_tokens=1)


@dataclass(slots=True, eq=False)
class RunningRequest:
    """One request in the batch and what it holds. A preempted request gets a new one when it comes back."""

    request: Request
    table: PageTable
    adapter_slot: int
    sample: SampleSpec
    tallies: tuple[Tally, ...]
    """Where its tokens are counted."""
    num_tokens: int
    """Prompt and output so far; kept beside the request because every step asks."""
    computed_before: int
    """Tokens computed before a preemption: up to here, computing is recomputing."""
    adapter_bytes: int
    """Adapter weights loaded because of this request and not yet accounted for."""
    cached_tokens: int
    """Prompt tokens from the prefix cache, never computed for this request, and not yet accounted for."""
    chain: list[CachedPage]
    """The first pages of the table, which are the prefix cache's. Those that the table has dropped are not used any more."""

    @property
    def used_chain(self) -> list[CachedPage]:
        """What it holds acquired of the chain."""
        return self.chain[self.table.num_dropped :]

    def plan(self, max_tokens: int) -> PlannedSequence:
        """The next at most ``max_tokens`` tokens. Its pages must be there."""
        request = self.request
        start = request.num_computed_tokens
        stop = min(self.num_tokens, start + max_tokens)
        num_prompt = len(request.prompt_token_ids)
        if start >= num_prompt and stop == start + 1 == self.num_tokens:
            return PlannedSequence(
                request.request_id,
                (request.output_token_ids[start - num_prompt],),
                start,
                self.table.pages,
                self.adapter_slot,
                self.sample,
            )
        wants_scores = request.sampling.prompt_logprobs is not None
        scores_prompt = wants_scores and start < num_prompt - 1 and stop > self.computed_before
        return PlannedSequence(
            request.request_id,
            request.token_ids(start, stop),
            start,
            self.table.first(stop),
            self.adapter_slot,
            self.sample if stop == self.num_tokens else None,
            *((request.sampling.prompt_logprobs, request.prompt_token_ids) if scores_prompt else ()),
        )

    def received(self, sequence: PlannedSequence, has_token: bool) -> Service:
        """What a step that has been computed gave the request."""
        start, num_prompt = sequence.start, len(self.request.prompt_token_ids)
        if (
            has_token
            and start >= num_prompt
            and start >= self.computed_before
            and not (self.adapter_bytes or self.cached_tokens)
        ):
            return DECODED
        end = start + len(sequence.token_ids)
        fresh = max(start, min(end, self.computed_before))
        adapter_bytes, self.adapter_bytes = self.adapter_bytes, 0
        cached_tokens, self.cached_tokens = self.cached_tokens, 0
        return Service(
            prefill_tokens=max(0, min(end, num_prompt) - fresh),
            decode_tokens=int(has_token),
            recomputed_tokens=fresh - start,
            cached_tokens=cached_tokens,
            adapter_bytes=adapter_bytes,
        )


class RunningSet:
    """Running requests in the order of their admission. Takes pages that are free, then idle ones."""

    def __init__(
        self,
        arena: Arena,
        residency: Residency,
        page_tokens: int,
        cache: PrefixCache | None = None,
        window: int | None = None,
    ) -> None:
        assert cache is None or cache.window == window, "the prefix cache has another window"
        self._window = window
        self._arena = arena
        self._residency = residency
        self._page_tokens = page_tokens
        self._cache = cache
        self._match: tuple[RequestId, int, int, list[CachedPage]] | None = None
        """The last answer of the cache, with what it depends on: a request that waits for memory asks in every step."""
        self._entries: dict[RequestId, RunningRequest] = {}

    def can_start(self, request: Request, record: AdapterRecord | None, memory: MemoryView) -> bool:
        """True if the adapter and all known tokens of the request have room now."""
        has_adapter = record is None or self._residency.can_acquire(record)
        return has_adapter and memory.prompt_pages <= memory.num_available_pages

    def fits_empty_arena(self, request: Request, record: AdapterRecord | None) -> bool:
        """True if the adapter and all known tokens of the request would fit if nobody else held anything."""
        num_pages = pages_for(request.num_tokens, self._page_tokens)
        return self._arena.could_hold(request=num_pages, adapter=0 if record is None else record.num_pages)

    def memory_for(self, request: Request, record: AdapterRecord | None) -> MemoryView:
        """What the arena would look like to this candidate."""
        arena, residency = self._arena, self._residency
        taken = 0 if record is None else residency.pages_to_acquire(record)
        chain = self._cached(request)
        borrowed_idle = sum(1 for page in chain[self._first_needed(chain) :] if page.num_users == 0)
        held = arena.num_owned("adapter") - residency.num_idle_pages + taken
        available = residency.idle_pages.num_available("request") - arena.reusable(taken, "adapter", "request")
        return MemoryView(
            page_tokens=self._page_tokens,
            num_kv_pages=arena.num_pages_for("request") - arena.reusable(held, "adapter", "request"),
            num_available_pages=available - borrowed_idle,
            prompt_pages=pages_for(request.num_tokens, self._page_tokens) - len(chain),
        )

    def start(self, request: Request, tallies: tuple[Tally, ...], computed_before: int) -> RunningRequest:
        """Acquire the adapter and the pages of everything known of the request. The caller asked ``can_start``.

        What the prefix cache holds of it counts as computed.
        """
        chain = list(self._cached(request))
        num_dropped = self._first_needed(chain)
        if self._cache is not None:
            # Before anything else: making room could evict just these pages.
            self._cache.acquire(chain[num_dropped:])
        slot, adapter_bytes = NO_ADAPTER_SLOT, 0
        if request.adapter is not None:
            adapter_bytes = self._residency.bytes_due(self._residency.record(request.adapter))
            acquired = self._residency.acquire(request.adapter)
            assert acquired is not None, "the adapter was said to fit"
            slot = acquired
        table = PageTable(self._arena, request.request_id, self._page_tokens)
        table.borrow([page.page for page in chain[num_dropped:]], num_dropped)
        request.num_computed_tokens = table.capacity
        entry = RunningRequest(
            request=request,
            table=table,
            adapter_slot=slot,
            sample=SampleSpec(
                request.sampling,
                request.prompt_token_ids,
                request.output_token_ids,
                zlib.crc32(request.request_id.encode()),
                request.token_mask,
            ),
            tallies=tallies,
            num_tokens=request.num_tokens,
            computed_before=computed_before,
            adapter_bytes=adapter_bytes,
            cached_tokens=max(0, min(table.capacity, request.num_prompt_tokens) - computed_before),
            chain=chain,
        )
        has_pages = self.grow(entry, entry.num_tokens)
        assert has_pages, "the prompt was said to fit"
        self._entries[request.request_id] = entry
        return entry

    def grow(self, entry: RunningRequest, num_tokens: int) -> bool:
        """Hold ``num_tokens`` tokens, from free or idle pages. False, and nothing happens, if short."""
        table = entry.table
        if num_tokens <= table.capacity:
            return True
        return self._residency.idle_pages.reclaim(table.num_missing(num_tokens), "request") and table.grow(num_tokens)

    def publish(self, entry: RunningRequest) -> None:
        """Let others find the full pages that have been computed."""
        if self._cache is None:
            return
        request, chain = entry.request, entry.chain
        if entry.table.num_dropped and entry.table.num_dropped >= len(chain):
            return  # it does not hold the page that the next one would be found behind
        first, last = len(chain), request.num_computed_tokens // self._page_tokens
        if last > first:
            token_ids = request.token_ids(first * self._page_tokens, last * self._page_tokens)
            self._cache.publish(_cache_key(request), chain, entry.table.owner, entry.table.pages[first:last], token_ids)

    def drop_unseen(self, entry: RunningRequest) -> None:
        """Where all layers have a window: give up the pages that no further token of the request sees.

        Published before, they may serve others as long as their memory is not wanted.
        """
        table, num_computed = entry.table, entry.request.num_computed_tokens
        first = first_seen_page(num_computed, self._window, self._page_tokens)
        if first <= table.num_dropped:
            return
        self.publish(entry)
        if self._cache is not None:
            self._cache.release(entry.chain[table.num_dropped : first])
        table.drop(first, len(entry.chain))

    def stop(self, entry: RunningRequest) -> None:
        """Give back the pages and the adapter."""
        request = entry.request
        del self._entries[request.request_id]
        if self._cache is not None:
            self._cache.release(entry.used_chain)
        entry.table.release()
        if request.adapter is not None:
            self._residency.release(request.adapter)

    def get(self, request_id: RequestId) -> RunningRequest | None:
        """The entry of a running request, or None."""
        return self._entries.get(request_id)

    def cheapest_like(self, entry: RunningRequest) -> RunningRequest:
        """The request of ``entry``'s client of which least must be computed again if it is preempted; the newest of equals.

        Whole pages stay in the prefix cache, so it is what lies in the last one.
        """
        page_tokens = self._page_tokens if self._cache is not None else sys.maxsize
        client_id = entry.request.client_id
        same = [other for other in reversed(self._entries.values()) if other.request.client_id == client_id]
        return min(same, key=lambda other: other.request.num_computed_tokens % page_tokens)

    def requests(self) -> list[Request]:
        """The running requests, in the order of their admission."""
        return [entry.request for entry in self._entries.values()]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[RunningRequest]:
        """Entries in the order of admission; a copy, so that requests may start and stop meanwhile."""
        return iter(list(self._entries.values()))

    def __contains__(self, entry: object) -> bool:
        return isinstance(entry, RunningRequest) and self._entries.get(entry.request.request_id) is entry

    def check_integrity(self) -> None:
        """Assert that arena, residency and entries agree."""
        self._arena.check_integrity()
        entries = self._entries.values()
        self._residency.check_integrity([e.request.adapter for e in entries if e.request.adapter is not None])
        if self._cache is not None:
            self._cache.check_integrity([entry.used_chain for entry in entries])
        for entry in entries:
            request = entry.request
            dropped, shared = entry.table.num_dropped, [page.page for page in entry.used_chain]
            pages = entry.table.pages[dropped : dropped + len(shared)]
            assert shared == pages, f"{request.request_id}: its table and its chain differ"
            entry.table.check_integrity(num_foreign=len(entry.chain))
            unseen = first_seen_page(request.num_computed_tokens, self._window, self._page_tokens)
            assert dropped == unseen, f"{request.request_id}: {dropped} pages are dropped, not {unseen}"
            shared_tokens = len(entry.chain) * self._page_tokens
            assert shared_tokens <= request.num_computed_tokens, f"{request.request_id}: shares what it has not computed"
            assert entry.num_tokens == request.num_tokens, f"{request.request_id}: tokens miscounted"
            assert 0 <= request.num_computed_tokens < entry.num_tokens, f"{request.request_id}: nothing left to compute"
            assert request.num_computed_tokens <= entry.table.capacity, f"{request.request_id}: KV outside its pages"
        held = {owner.name for owner in self._arena.owners("request")}
        assert held <= {e.request.request_id for e in entries}, "pages of a request that does not run"

    def _first_needed(self, chain: list[CachedPage]) -> int:
        return 0 if self._cache is None else self._cache.first_needed(len(chain))

    def _cached(self, request: Request) -> list[CachedPage]:
        """What the cache holds of the request, its last token never: somebody has to compute the next one's logits."""
        cache = self._cache
        if cache is None or request.sampling.prompt_logprobs is not None:
            return []
        num_tokens = request.num_tokens
        match = self._match
        if match is None or match[:3] != (request.request_id, num_tokens, cache.version):
            chain = cache.match(_cache_key(request), request.token_ids(0, num_tokens - 1))
            self._match = match = (request.request_id, num_tokens, cache.version, chain)
        return match[3]


def _cache_key(request: Request) -> CacheKey:
    return CacheKey(request.adapter, request.cache_salt)
