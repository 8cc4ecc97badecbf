"""Forbidden words as token sequences, over tokenizers of several kinds."""

from __future__ import annotations

import pytest

from evenflow.base.errors import InvalidRequest
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.text.bad_words import bad_word_ids, with_bad_words

WORDS = {
    "honey": [1],
    " honey": [2],
    "bread": [3, 4],
    " bread": [5, 4],
    " a b": [8, 9, 10],
    "a b": [9, 10],
    "!": [6],
    " !": [7, 6],
}


def encode(text: str) -> list[int]:
    return WORDS.get(text, [])


def test_a_word_is_forbidden_at_its_beginning_and_behind_a_blank():
    assert bad_word_ids(["honey", " bread"], encode) == ((1,), (2,), (3, 4), (5, 4))
    assert bad_word_ids(["honey", "honey", " honey"], encode) == ((1,), (2,))


def test_a_blank_that_is_a_token_of_its_own_adds_no_second_form():
    assert bad_word_ids(["!", "a b"], encode) == ((6,), (9, 10))


def test_what_cannot_be_forbidden_is_named():
    with pytest.raises(InvalidRequest, match="bad_words holds 'nothing'") as refused:
        bad_word_ids(["nothing"], encode)
    assert refused.value.param == "bad_words"
    with pytest.raises(InvalidRequest, match="token sequences; allowed: 128"):
        bad_word_ids([str(i) for i in range(100)], lambda text: [1000 * len(text) + int(text)])
    for words in ([""], ["x" * 257], ["x"] * 129):
        with pytest.raises(InvalidRequest) as refused:
            SamplingParams(bad_words=tuple(words))
        assert refused.value.param == "bad_words"


def test_sampling_without_words_is_left_as_it_is():
    sampling = SamplingParams()
    assert with_bad_words(sampling, encode) is sampling
    assert with_bad_words(SamplingParams(bad_words="honey"), encode).bad_word_ids == ((1,), (2,))
