"""Admission against a memory that is played forward token by token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evenflow.serving.core.request import AdapterDigest, ClientId, FinishReason, Request, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.scheduler.admission import KnownPeak, MemoryView, PredictAndPreempt
from evenflow.serving.scheduler.tallies import Tallies


def a_request(
    num_prompt: int, length: int, produced: int = 0, *, client: str = "a", adapter: str | None = None, is_known: bool = True
) -> Request:
    return Request(
        RequestId("r"),
        ClientId(client),
        [0] * num_prompt,
        GREEDY,
        0.0,
        None if adapter is None else AdapterDigest(adapter),
        max_output_tokens=length if not is_known else 10_000,
        known_output_tokens=length if is_known else None,
        output_token_ids=[0] * produced,
    )


def a_memory(num_pages: int, page_tokens: int = 1, *, num_available: int = 0, prompt_pages: int = 0) -> MemoryView:
    return MemoryView(page_tokens, num_pages, num_available, prompt_pages)


def peak_when_played_forward(requests: list[Request]) -> int:
    """Everybody produces one token a step until its length; tokens held, at most. A newcomer has its first token."""
    held = [r.num_prompt_tokens + max(1, r.num_output_tokens) for r in requests]
    left = [(r.known_output_tokens or 0) - r.num_output_tokens - 1 for r in requests]
    peak, t = 0, 0
    while any(n >= t for n in left):
        peak = max(peak, sum(h + t for h, n in zip(held, left, strict=True) if n >= t))
        t += 1
    return peak


lengths = st.tuples(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1))


@given(running=st.lists(lengths, max_size=8), arriving=st.lists(lengths, min_size=1, max_size=4), capacity=st.integers(1, 400))
def test_the_known_peak_is_the_peak(
    running: list[tuple[int, int, float]], arriving: list[tuple[int, int, float]], capacity: int
) -> None:
    present = [a_request(n, length, min(length - 1, int(share * length))) for n, length, share in running]
    admission = KnownPeak()
    admission.begin(present)
    for num_prompt, length, _ in arriving:
        candidate = a_request(num_prompt, length)
        fits = peak_when_played_forward([*present, candidate]) < capacity
        assert admission.fits(candidate, a_memory(capacity)) == fits
        if fits:
            admission.admitted(candidate)
            present.append(candidate)


def test_a_request_of_unknown_length_counts_with_what_it_may_produce() -> None:
    admission = KnownPeak()
    admission.begin([])
    candidate = a_request(10, 20, is_known=False)
    assert not admission.fits(candidate, a_memory(30))
    assert admission.fits(candidate, a_memory(31))


def test_with_pages_every_request_counts_the_tail_of_its_last_page() -> None:
    admission = KnownPeak()
    admission.begin([])
    candidate = a_request(10, 20)
    assert admission.fits(candidate, a_memory(31, 1))
    assert not admission.fits(candidate, a_memory(2, 16)), "30 tokens fit 32, but two such requests could not share a page"
    assert admission.fits(candidate, a_memory(3, 16))


def test_the_papers_server_reserves_tokens_per_distinct_adapter_or_client() -> None:
    for reserved_by in ("client", "adapter"):
        admission = KnownPeak(reserved_tokens=32, reserved_by=reserved_by)
        admission.begin([a_request(10, 10, client="a", adapter="x"), a_request(10, 10, client="b", adapter="y")])
        known = a_request(10, 10, client="a", adapter="x")
        new = a_request(10, 10, client="c", adapter="z")
        assert admission.fits(known, a_memory(61 + 64))
        assert not admission.fits(new, a_memory(61 + 64))
        assert admission.fits(new, a_memory(61 + 96))
    admission = KnownPeak(reserved_tokens=32, reserved_by="adapter")
    admission.begin([])
    assert admission.fits(a_request(10, 10), a_memory(21)), "a request without an adapter reserves nothing"


def test_predict_and_preempt_leaves_a_share_of_an_average_output_each() -> None:
    admission = PredictAndPreempt(growth_share=0.5, initial_output_tokens=64)
    admission.begin([a_request(1, 1)] * 3)
    assert not admission.fits(a_request(1, 1), a_memory(99, 16, num_available=10, prompt_pages=3))
    assert admission.fits(a_request(1, 1), a_memory(99, 16, num_available=11, prompt_pages=3))
    admission.admitted(a_request(1, 1))
    assert not admission.fits(a_request(1, 1), a_memory(99, 16, num_available=11, prompt_pages=3))


def test_predict_and_preempt_learns_from_those_that_ended_by_themselves() -> None:
    admission = PredictAndPreempt(initial_output_tokens=64, smoothing=0.5)
    request = a_request(1, 100, produced=8)
    request.finish_reason = FinishReason.ABORT
    admission.finished(request)
    assert admission.mean_output_tokens == 64
    request.finish_reason = FinishReason.STOP
    admission.finished(request)
    assert admission.mean_output_tokens == 36


def test_tallies_of_the_idle_are_bounded() -> None:
    tallies = Tallies(max_idle=3)
    busy = tallies.enter("busy")
    busy.num_running = 1
    for i in range(10):
        tallies.enter(f"c{i}")
        tallies.leave(f"c{i}")
        tallies.check_integrity()
    tallies.leave("busy")
    assert set(tallies.by_name) == {"busy", "c7", "c8", "c9"}
    assert tallies.enter("busy") is busy
