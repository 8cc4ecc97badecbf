"""Output tokens to text, one by one: a character appears once all its bytes are there, and never changes.

Two ways. Byte-level vocabularies (Llama 3, Qwen): bytes through Python's incremental UTF-8 decoder.
Others (SentencePiece): decode a short window with and without the new token, and emit the difference.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

_REPLACEMENT = "�"
_PROMPT_TOKENS = 6
"""Enough of the prompt that the first output token keeps its leading space."""


class Detokenizer(Protocol):
    """State of one request's output."""

    def add(self, token_id: int) -> str:
        """The text that this token completes, perhaps none."""
        ...

    def finish(self) -> str:
        """What is left when no token follows: U+FFFD for an incomplete character."""
        ...


class ByteDetokenizer:
    """For byte-level vocabularies: the texts together equal the tokenizer's decode of all output tokens."""

    def __init__(self, bytes_of: Callable[[int], bytes], skipped_ids: Collection[int]) -> None:
        self._bytes_of = bytes_of
        self._skipped_ids = skipped_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """See ``Detokenizer.add``."""
        if token_id in self._skipped_ids:
            return ""
        return self._decoder.decode(self._bytes_of(token_id))

    def finish(self) -> str:
        """See ``Detokenizer.finish``."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any vocabulary whose tokens change text only near themselves.

    ``decode``: token ids to text. The texts together equal what the output adds to the decoded prompt.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt_token_ids: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt_token_ids[-_PROMPT_TOKENS:])
        self._num_read = len(self._window)
        self._read_text = decode(self._window)
        """Text of the first ``_num_read`` tokens of the window, all of it emitted."""

    def add(self, token_id: int) -> str:
        """See ``Detokenizer.add``."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if len(text) <= len(self._read_text) or text.endswith(_REPLACEMENT):
            return ""
        new = text[len(self._read_text) :]
        del self._window[: self._num_read]
        self._num_read = len(self._window)
        self._read_text = self._decode(self._window)
        return new

    def finish(self) -> str:
        """See ``Detokenizer.finish``."""
        new = self._decode(self._window)[len(self._read_text) :]
        self._num_read, self._read_text = len(self._window), self._decode(self._window)
        return new


__all__ = ["ByteDetokenizer", "Detokenizer", "WindowDetokenizer"]
