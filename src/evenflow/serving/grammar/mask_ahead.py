"""Masks of a step's constrained requests, computed on a thread of their own while the model computes the step.

When a step has ended, every constrained request is told its new token; what may come after it is found out beside the
next forward pass. The sampler waits only if the forward pass was the quicker of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from evenflow.base.errors import ConstraintFailed

if TYPE_CHECKING:
    from llguidance import LLMatcher


class ConstrainedAnswer:
    """The place of one request's answer in its grammar: a ``TokenMask``. Mutated by its ``MaskAhead`` alone."""

    def __init__(self, matcher: LLMatcher, mask: memoryview) -> None:
        self._matcher = matcher
        self._mask = mask
        self._pending: Future[None] | None = None

    def words(self) -> memoryview:
        """See ``TokenMask``. The view is valid until the next token is accepted."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
        if self._matcher.is_error():
            raise ConstraintFailed(f"the constraint became too complex: {self._matcher.get_error().splitlines()[0][:200]}")
        return self._mask

    def accept(self, token_id: int) -> None:
        """Go on behind ``token_id``, and find out what may follow. On the thread of ``MaskAhead``."""
        if self._matcher.is_stopped() or not self._matcher.consume_token(token_id):
            return
        self._mask = mask_of(self._matcher)

    def wait_for(self, pending: Future[None]) -> None:
        """The mask is right only when ``pending`` is done."""
        self._pending = pending


class MaskAhead:
    """One thread that keeps the masks of all constrained requests a token ahead."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "token-masks")

    def begin(self, matcher: LLMatcher) -> ConstrainedAnswer:
        """Return the place before the first token of an answer. ``matcher`` is fresh."""
        return ConstrainedAnswer(matcher, mask_of(matcher))

    def advance(self, accepted: Sequence[tuple[ConstrainedAnswer, int]]) -> None:
        """Each answer has got one more token. Returns at once."""
        if not accepted:
            return
        pending = self._pool.submit(_accept_all, list(accepted))
        for answer, _ in accepted:
            answer.wait_for(pending)

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def mask_of(matcher: LLMatcher) -> memoryview:
    """Return the tokens that ``matcher`` allows next, as ``TokenMask.words`` does."""
    return memoryview(matcher.compute_bitmask()).cast("I")


def _accept_all(accepted: Sequence[tuple[ConstrainedAnswer, int]]) -> None:
    for answer, token_id in accepted:
        answer.accept(token_id)
