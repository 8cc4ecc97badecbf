"""An executor that believes nothing: it keeps every KV slot and every adapter page, and reads back what it needs.

The token it produces depends on every token before it as found in the pages, and on the adapter as found in
its pages. So a page given to two owners, freed too early, or a load that was forgotten changes the output.
As real K and V do, what a slot holds depends on the adapter and on all tokens before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from evenflow.serving.core.plan import NO_ADAPTER_SLOT, AdapterLoad, SampledToken, StepPlan, StepResult
from evenflow.serving.core.request import AdapterDigest, Request, RequestId
from evenflow.serving.memory.page_table import pages_for

NUM_TOKENS = 1000


def next_token(adapter: str | None, token_ids: list[int]) -> int:
    """What a request without any company would produce next."""
    return zlib.crc32(repr((adapter, token_ids)).encode()) % NUM_TOKENS


def alone(adapter: str | None, prompt: list[int], num_tokens: int) -> list[int]:
    """The whole output of a request without any company."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token_ids.append(next_token(adapter, token_ids))
    return token_ids[len(prompt) :]


def first_seen(position: int, window: int | None) -> int:
    """The first token that the token at this position sees."""
    return 0 if window is None else max(0, position + 1 - window)


def _mark(adapter: str | None, token_ids: list[int]) -> int:
    return zlib.crc32(repr((adapter, token_ids)).encode())


class KVOracle:
    """Runs plans over a map of pages."""

    def __init__(
        self, num_pages: int, page_tokens: int, adapter_pages: Mapping[AdapterDigest, int], window: int | None = None
    ) -> None:
        self._window = window
        self._num_pages = num_pages
        self._page_tokens = page_tokens
        self._adapter_pages = adapter_pages
        self._content: dict[int, Any] = {}
        """Page -> list of (token id, mark of everything it depends on) by slot, or the digest of the adapter it holds."""
        self._slots: dict[int, tuple[AdapterDigest, tuple[int, ...]]] = {}

    def run(self, plan: StepPlan, requests: Mapping[RequestId, Request], duration_s: float = 0.0) -> StepResult:
        """Check the plan against the requests, write what it writes, and answer from what it can read."""
        assert plan.sequences
        for load in plan.loads:
            if not load.is_prefetch:
                self._load(load)
        written: set[tuple[int, int]] = set()
        num_written = 0
        for sequence in plan.sequences:
            request = requests[sequence.request_id]
            known = request.prompt_token_ids + request.output_token_ids
            stop = sequence.start + len(sequence.token_ids)
            assert sequence.start == request.num_computed_tokens
            assert list(sequence.token_ids) == known[sequence.start : stop]
            assert sequence.token_ids
            assert (sequence.sample is not None) == (stop == len(known))
            assert len(sequence.pages) == pages_for(stop, self._page_tokens)
            assert all(0 <= page < self._num_pages for page in sequence.pages)
            for position, token_id in enumerate(sequence.token_ids, start=sequence.start):
                page, slot = sequence.pages[position // self._page_tokens], position % self._page_tokens
                if not isinstance(self._content.get(page), list):
                    self._content[page] = [None] * self._page_tokens
                self._content[page][slot] = (token_id, _mark(request.adapter, known[: position + 1]))
                written.add((page, slot))
                num_written += 1
        assert len(written) == num_written, "two requests write to one place"
        tokens = {}
        for sequence in plan.sequences:
            stop = sequence.start + len(sequence.token_ids)
            adapter = self._adapter(sequence.adapter_slot)
            assert adapter == requests[sequence.request_id].adapter, "rows of another adapter"
            known = requests[sequence.request_id].token_ids(0, stop)
            for position in range(first_seen(sequence.start, self._window), stop):
                content = self._content[sequence.pages[position // self._page_tokens]]
                assert isinstance(content, list), "KV was overwritten by an adapter"
                found = content[position % self._page_tokens]
                expected = known[position], _mark(adapter, list(known[: position + 1]))
                assert found == expected, "K and V of another prefix or adapter"
            if sequence.sample is not None:
                tokens[sequence.request_id] = SampledToken(next_token(adapter, list(known)))
        for load in plan.loads:
            if load.is_prefetch:  # as late as can be: nothing of this step may need it, nor write where it goes
                assert not {page for page, _ in written}.intersection(load.pages), (
                    "KV was written where an adapter is being prefetched"
                )
                self._load(load)
        assert len({s.request_id for s in plan.sequences}) == len(plan.sequences)
        return StepResult(plan.step, tokens, {}, duration_s)

    def _load(self, load: AdapterLoad) -> None:
        """The part [first, stop); the slot may be used once it is the last one."""
        assert len(load.pages) == self._adapter_pages[load.digest]
        assert 0 <= load.first < load.stop <= len(load.pages)
        assert all(self._content[page] == load.digest for page in load.pages[: load.first]), "a part was never loaded, or lost"
        for page in load.pages[load.first : load.stop]:
            self._content[page] = load.digest
        self._slots.pop(load.slot, None)
        if load.is_last:
            self._slots[load.slot] = (load.digest, tuple(load.pages))

    def _adapter(self, slot: int) -> AdapterDigest | None:
        if slot == NO_ADAPTER_SLOT:
            return None
        digest, pages = self._slots[slot]
        assert all(self._content[page] == digest for page in pages), "an adapter was overwritten"
        return digest
