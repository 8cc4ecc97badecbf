"""vLLM's waiting queue with our order in it: the methods of ``RequestQueue`` and what else the scheduler tells the books.

The line itself is as plain as vLLM's own: requests in order of arrival, what was preempted or passed over at its
front. It alone says who waits. The books say who is next. When they fail, for whatever reason, the line is served
first come, first served, until books are begun anew in a later step: whoever waits and runs is entered as if it had
come just then, and counters start from zero. A fault is counted and the first is logged; it never reaches vLLM.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from evenflow.integrations.vllm.books import Books
from evenflow.integrations.vllm.figures import Figures
from evenflow.integrations.vllm.request_view import EngineRequest, Statuses

log = logging.getLogger("evenflow.integrations.vllm")

Result = TypeVar("Result")

RETRY_S = 1.0
"""Pause between a fault and new books: a policy that always fails must not cost more than this."""


class WaitingLine:
    """Owns the line and the present books. ``make_books`` makes empty ones."""

    def __init__(
        self, make_books: Callable[[], Books], statuses: Statuses, figures: Figures, clock: Callable[[], float]
    ) -> None:
        self._make_books = make_books
        self._statuses = statuses
        self._figures = figures
        self._clock = clock
        self._line: OrderedDict[str, EngineRequest] = OrderedDict()
        self._books: Books | None = make_books()
        self._taken: EngineRequest | None = None
        """Taken out, and not booked yet: its status will say why."""
        self._peeked: EngineRequest | None = None
        """Shown last, and not taken out since."""
        self._retry_s = 0.0
        self.num_faults = 0

    # What vLLM calls: see RequestQueue.

    def add_request(self, request: EngineRequest) -> None:
        """A new request waits."""
        self._line[request.request_id] = request
        self._book(lambda books: books.arrive(request))

    def peek_request(self) -> EngineRequest:
        """Who is next. Raises IndexError if nobody may start now."""
        request = self._next()
        if request is None:
            raise IndexError("peek from an empty queue")
        self._peeked = request
        return request

    def pop_request(self) -> EngineRequest:
        """Take out who is next, to start it or to set it aside. Raises IndexError if nobody may start now."""
        request = self._next()
        if request is None:
            raise IndexError("pop from an empty queue")
        del self._line[request.request_id]
        self._taken = request
        self._peeked = None
        return request

    def prepend_request(self, request: EngineRequest) -> None:
        """Put back what was preempted or set aside."""
        self.book_taken()
        self._line[request.request_id] = request
        self._line.move_to_end(request.request_id, last=False)
        self._book(lambda books: books.requeue(request))

    def prepend_requests(self, requests: Iterable[EngineRequest]) -> None:
        """Put back, one by one; the last one is then the first of the line."""
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: EngineRequest) -> None:
        """It has ended while it waited. Nothing happens if it does not wait here."""
        self.book_taken()
        if self._line.pop(request.request_id, None) is not None:
            self._book(lambda books: books.end(request, is_complete=request.status in self._statuses.complete))

    def remove_requests(self, requests: Iterable[EngineRequest]) -> None:
        """All of them, as far as they wait here."""
        for request in list(requests):
            self.remove_request(request)

    def __bool__(self) -> bool:
        """Whether anybody may start now. More may wait: ``len`` counts them."""
        return self._next() is not None

    def __len__(self) -> int:
        self.book_taken()
        return len(self._line)

    def __iter__(self) -> Iterator[EngineRequest]:
        self.book_taken()
        return iter(list(self._line.values()))

    # What the scheduler tells besides.

    def begin_step(self, started: Callable[[], Iterable[EngineRequest]]) -> None:
        """A scheduling step begins. New books are begun here if the last ones failed: ``started`` says who runs."""
        self._peeked = None
        if self._books is None and self._clock() >= self._retry_s:
            self._begin_anew(started())
        self._book(Books.begin_scan)

    def book_taken(self) -> None:
        """Book what was taken out last, now that its status says why it was."""
        request, self._taken = self._taken, None
        if request is not None:
            self._book(lambda books: books.taken(request))

    def next_request(self) -> EngineRequest | None:
        """Who is next; None if nobody may start now."""
        return self._next()

    def head_did_not_fit(self) -> bool:
        """Whether the scan of this step ended at a request that was looked at and could not be placed."""
        return self._peeked is not None

    def arrived_running(self, request: EngineRequest) -> None:
        """It starts in this step; unless it came from this line, its books begin here. Call before its tokens are counted."""
        books = self._books
        life = None if books is None else books.lives.get(request.request_id)
        if books is not None and (life is None or life.is_waiting):
            self._book(lambda books: books.arrive_running(request, request.num_computed_tokens))

    def displaced(self, running: Iterable[EngineRequest]) -> EngineRequest | None:
        """Which of the running requests must give way to the one that is next; None: nobody."""
        head = self._next()
        if head is None or self._books is None:
            return None
        return self._book(lambda books: books.displaced(head, running))

    def preempting(self, request: EngineRequest) -> None:
        """It is about to be preempted."""
        self._book(lambda books: books.preempting(request))

    def hold_back(self, request: EngineRequest) -> None:
        """It was preempted for somebody else, and does not start again in this step."""
        self._book(lambda books: books.hold_back(request))

    def output(self, request: EngineRequest, num_tokens: int) -> None:
        """It has produced so many tokens."""
        if num_tokens and self._books is not None:
            try:
                self._books.output(request, num_tokens)
            except Exception:
                self._failed()

    def ended(self, request: EngineRequest) -> None:
        """It has ended, or its session's turn has. It leaves the line with ``remove_request`` if it waits."""
        self.book_taken()
        if request.request_id in self._line:
            del self._line[request.request_id]
        self._book(lambda books: books.end(request, is_complete=request.status in self._statuses.complete))

    def shares_changed(self) -> None:
        """Weights or tiers are others now."""
        self._book(lambda books: books.policy.shares_changed())

    def counters(self) -> dict[str, float]:
        """The policy's virtual counters; none while there are no books."""
        return self._book(lambda books: dict(books.policy.counters())) or {}

    def close(self) -> None:
        """Give back what the policy holds."""
        close = getattr(self._books.policy, "close", None) if self._books is not None else None
        if close is not None:
            close()

    def check_integrity(self, running: Iterable[EngineRequest]) -> None:
        """Assert that the books agree with the line and with ``running``: all started requests that have not ended."""
        self.book_taken()
        assert self._books is not None, "the books have failed"
        self._books.check_integrity(self._line.values(), running)

    def _next(self) -> EngineRequest | None:
        self.book_taken()
        if self._books is not None:
            request = self._book(Books.next)
            if self._books is not None:
                return request
        return next(iter(self._line.values()), None)

    def _book(self, call: Callable[[Books], Result]) -> Result | None:
        books = self._books
        if books is None:
            return None
        try:
            return call(books)
        except Exception:
            self._failed()
            return None

    def _failed(self) -> None:
        if not self.num_faults:
            log.exception(
                "the books have failed: first come, first served until they are begun anew; further faults are counted"
            )
        self.num_faults += 1
        self.close()
        self._books = None
        self._retry_s = self._clock() + RETRY_S

    def _begin_anew(self, started: Iterable[EngineRequest]) -> None:
        self._figures.restart()
        try:
            books = self._make_books()
            for request in started:
                books.arrive_running(request, request.num_prompt_tokens)
            for request in self._line.values():
                books.arrive(request)
        except Exception:
            self._failed()
        else:
            self._books = books
