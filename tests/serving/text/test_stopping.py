"""The end of an output: stop strings however the text is cut, stop tokens, end of sequence, length."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import byte_level

from evenflow.serving.core.request import FinishReason
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.text import OutputText, StopChecker, Tokenizer


def brute_force(text, stops, include):
    """The first end of any stop string, character by character; of several that end there, the longest."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stops if text[:end].endswith(s)]
        if ending:
            longest = max(ending, key=len)
            return text[:end] if include else text[: end - len(longest)], longest
    return text, None


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.text("abc", max_size=4), max_size=8),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.booleans(),
)
def test_stop_strings_end_the_text_however_it_is_cut(pieces, stops, include):
    checker = StopChecker(stops, include_stop=include)
    emitted = ""
    expected, matched = brute_force("".join(pieces), stops, include)
    for i, piece in enumerate(pieces):
        emitted += checker.feed(piece)
        so_far = brute_force("".join(pieces[: i + 1]), stops, include)
        assert so_far[0].startswith(emitted), "emitted text may never be taken back"
        # Only what may still become a stop string is held back.
        held = len(so_far[0]) - len(emitted)
        assert held <= max(len(s) for s in stops) - 1
    emitted += checker.finish()
    assert (emitted, checker.matched) == (expected, matched)


def test_without_stop_strings_nothing_is_held_back():
    checker = StopChecker(())
    assert checker.feed("a") == "a"
    assert checker.finish() == ""


def test_text_that_cannot_become_a_stop_string_comes_at_once():
    checker = StopChecker(["END"])
    assert [checker.feed(c) for c in "aENx"] == ["a", "", "", "ENx"]


def test_stop_strings_do_not_count_before_min_tokens_but_may_begin_there():
    checker = StopChecker(["ab"])
    assert checker.feed("xab", may_stop=False) == "xab"
    assert checker.feed("a", may_stop=False) == ""
    assert checker.feed("b") == ""
    assert checker.matched == "ab"
    assert checker.feed("more") == ""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level(folder)
    return Tokenizer.from_folder(folder)


def run(tokenizer, ids, max_tokens=100, eos=(0,), **fields):
    output = OutputText(tokenizer, [5], SamplingParams(max_tokens=None, **fields), eos, max_tokens)
    text = ""
    for count, token in enumerate(ids, 1):
        delta = output.add(token)
        text += delta.text
        if delta.finish_reason is not None:
            return text, delta.finish_reason, delta.stop_reason, count
    return text, None, None, len(ids)


def test_end_of_sequence(tokenizer):
    ids = [*tokenizer.encode("hi"), 0, *tokenizer.encode("no")]
    assert run(tokenizer, ids) == ("hi", FinishReason.STOP, None, len(tokenizer.encode("hi")) + 1)
    assert run(tokenizer, ids, ignore_eos=True)[0] == "hino"
    assert run(tokenizer, ids, include_stop_str_in_output=True, skip_special_tokens=False)[0] == "hi<|end|>"


def test_stop_token_ids(tokenizer):
    (bang,) = tokenizer.encode("!")
    ids = [*tokenizer.encode("hi"), bang, *tokenizer.encode("no")]
    assert run(tokenizer, ids, stop_token_ids=(bang,))[:3] == ("hi", FinishReason.STOP, bang)
    assert run(tokenizer, ids, stop_token_ids=(bang,), include_stop_str_in_output=True)[0] == "hi!"


def test_stop_strings_across_token_borders(tokenizer):
    ids = tokenizer.encode("one STOP two")
    assert len(tokenizer.encode("STOP")) > 1
    assert run(tokenizer, ids, stop=("STOP",))[:3] == ("one ", FinishReason.STOP, "STOP")
    assert run(tokenizer, ids, stop=("STOP", "never"), include_stop_str_in_output=True)[0] == "one STOP"


def test_length_gives_back_what_was_held(tokenizer):
    ids = tokenizer.encode("one ST") + tokenizer.encode("🎉")[:2]
    text, reason, stop, _ = run(tokenizer, ids, max_tokens=len(ids), stop=("STOP",))
    assert (text, reason, stop) == ("one ST�", FinishReason.LENGTH, None)


def test_nothing_ends_before_min_tokens(tokenizer):
    ids = [0, *tokenizer.encode("aXbXc"), 0]
    text, reason, _, count = run(tokenizer, ids, min_tokens=4, stop=("X",))
    assert (text, reason, count) == ("aXb", FinishReason.STOP, 5)


def test_token_ids_alone_end_too():
    assert run(None, [7, 8, 0]) == ("", FinishReason.STOP, None, 3)
    assert run(None, [7, 8, 0], max_tokens=2) == ("", FinishReason.LENGTH, None, 2)


@given(st.text(alphabet="ab", max_size=40), st.text(alphabet="ab", min_size=1, max_size=12))
def test_what_may_begin_a_stop_string_is_its_longest_beginning_at_the_end(text, stop):
    expected = max((n for n in range(len(stop)) if text.endswith(stop[:n])), default=0)
    assert StopChecker._overlap(text, stop) == expected
