"""Forbidden words as the token sequences in which a model may write them. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from evenflow.base.errors import InvalidRequest
from evenflow.serving.core.sampling import MOST_BAD_WORDS, SamplingParams

Encode = Callable[[str], list[int]]
"""A text to its token ids, without special tokens."""


def bad_word_ids(words: Sequence[str], encode: Encode) -> tuple[tuple[int, ...], ...]:
    """Return the token sequences of ``words``: each as it stands, and as it stands behind a blank.

    The second form counts only if the blank becomes part of its first token, as in vLLM. A tokenizer may write the same
    letters with other tokens; those are not found. Raises InvalidRequest for a word without tokens, and for too many.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        inside = tuple(encode(bare))
        if not inside:
            raise InvalidRequest(f"bad_words holds {word[:40]!r}, which has no token", "bad_words")
        found[inside] = None
        behind = tuple(encode(" " + bare))
        if behind and behind[0] != inside[0] and len(behind) == len(inside):
            found[behind] = None
    if len(found) > MOST_BAD_WORDS:
        raise InvalidRequest(
            f"bad_words are {len(found)} token sequences; allowed: {MOST_BAD_WORDS}, and a word has up to two", "bad_words"
        )
    return tuple(found)


def with_bad_words(sampling: SamplingParams, encode: Encode) -> SamplingParams:
    """Return ``sampling`` with its bad words as token sequences. Raises InvalidRequest."""
    if not sampling.bad_words:
        return sampling
    return replace(sampling, bad_word_ids=bad_word_ids(sampling.bad_words, encode))


__all__ = ["bad_word_ids", "with_bad_words"]
