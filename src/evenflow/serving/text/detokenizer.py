"""Output tokens to text, one by one: a character appears once all its bytes are there, and never changes.

Two ways. Vocabularies whose tokens are bytes, or pieces of text with bytes for what they lack (Llama 3 and
Qwen; Llama 2 and Mistral): bytes through an incremental UTF-8 decoder. Others: decode a short window with and
without the new token, and emit the difference. Both take a bounded time for a token, whatever came before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

_REPLACEMENT = "�"
_MOST_BYTES_WAITING = 3
"""A character has at most four bytes: more than three never wait for the next one."""
_PROMPT_TOKENS = 6
"""Enough of the prompt that the first output token keeps its leading space."""
_MOST_TOKENS_WAITING = 8
"""A character that is not complete after so many tokens will never be: its bytes are no text."""


class Detokenizer(Protocol):
    """State of one request's output."""

    def add(self, token_id: int) -> str:
        """The text that this token completes, perhaps none."""
        ...

    def finish(self) -> str:
        """What is left when no token follows: U+FFFD for an incomplete character."""
        ...


class Utf8Stream:
    """Bytes to text, as they come. ``replaces_each_byte``: one U+FFFD for each byte that is no text, else one for
    each beginning of a character that is not continued, as Unicode recommends.
    """

    def __init__(self, *, replaces_each_byte: bool) -> None:
        self._replaces_each_byte = replaces_each_byte
        self._waiting = b""
        """The beginning of a character: three bytes at most."""

    def feed(self, data: bytes) -> str:
        """The characters that ``data`` completes."""
        data = self._waiting + data
        self._waiting = b""
        text = ""
        while data:
            try:
                return text + data.decode("utf-8")
            except UnicodeDecodeError as error:
                text += data[: error.start].decode("utf-8")
                if error.end == len(data) and error.reason == "unexpected end of data":
                    self._waiting = data[error.start :]
                    return text
                text += self._replaced(error.end - error.start)
                data = data[error.end :]
        return text

    def finish(self) -> str:
        """What waits for bytes that do not come."""
        waiting, self._waiting = self._waiting, b""
        return self._replaced(len(waiting)) if waiting else ""

    def _replaced(self, num_bytes: int) -> str:
        return _REPLACEMENT * (num_bytes if self._replaces_each_byte else 1)


class ByteDetokenizer:
    """For vocabularies whose tokens are known by their bytes: the texts together are what the output adds to the prompt.

    A prompt may end inside a character: the output then begins with the whole of it. Where bytes are no text, they
    become U+FFFD as in the tokenizer's own decoding; characters that stand complete before such bytes stay, though,
    because they have been sent.
    """

    def __init__(
        self,
        bytes_of: Callable[[int], bytes],
        skipped_ids: Collection[int],
        prompt_token_ids: Sequence[int] = (),
        *,
        replaces_each_byte: bool = False,
        num_stripped: int = 0,
    ) -> None:
        """``num_stripped``: spaces that are taken from the beginning of a text; the prompt's text, if it has any, has them."""
        self._bytes_of = bytes_of
        self._skipped_ids = skipped_ids
        self._stream = Utf8Stream(replaces_each_byte=replaces_each_byte)
        shown = (token_id for token_id in prompt_token_ids if token_id not in skipped_ids and bytes_of(token_id))
        self._num_stripped = num_stripped if num_stripped and next(shown, None) is None else 0
        end = b"".join(bytes_of(token_id) for token_id in prompt_token_ids[-_MOST_BYTES_WAITING:])
        self._stream.feed(end[-_MOST_BYTES_WAITING:])

    def add(self, token_id: int) -> str:
        """See ``Detokenizer.add``."""
        if token_id in self._skipped_ids:
            return ""
        text = self._stream.feed(self._bytes_of(token_id))
        if self._num_stripped and text:
            num_spaces = len(text) - len(text.lstrip(" "))
            text, self._num_stripped = text[min(num_spaces, self._num_stripped) :], 0
        return text

    def finish(self) -> str:
        """See ``Detokenizer.finish``."""
        return self._stream.finish()


class WindowDetokenizer:
    """For any vocabulary whose tokens change text only near themselves.

    ``decode``: token ids to text. The texts together equal what the output adds to the decoded prompt.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt_token_ids: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt_token_ids[-_PROMPT_TOKENS:])
        self._num_read = len(self._window)
        # A prompt may end inside a character: what stands for its bytes is not taken for text that has been read.
        self._read_text = decode(self._window).rstrip(_REPLACEMENT)
        """Text of the first ``_num_read`` tokens of the window, all of it emitted."""

    def add(self, token_id: int) -> str:
        """See ``Detokenizer.add``."""
        self._window.append(token_id)
        text = self._decode(self._window)
        waits = text.endswith(_REPLACEMENT) and len(self._window) - self._num_read < _MOST_TOKENS_WAITING
        if len(text) <= len(self._read_text) or waits:
            if len(self._window) - self._num_read > 2 * _MOST_TOKENS_WAITING:  # tokens without any text, one after the other
                del self._window[self._num_read : -_MOST_TOKENS_WAITING]
            return ""
        new = text[len(self._read_text) :]
        kept = self._window[self._num_read :]
        kept_text = self._decode(kept)
        if _REPLACEMENT in kept_text and _REPLACEMENT not in new and len(self._window) <= 2 * _MOST_TOKENS_WAITING:
            kept, kept_text = self._window, text  # without what stands before them, the kept tokens are half a character
        self._window, self._num_read, self._read_text = kept, len(kept), kept_text
        return new

    def finish(self) -> str:
        """See ``Detokenizer.finish``."""
        new = self._decode(self._window)[len(self._read_text) :]
        self._num_read, self._read_text = len(self._window), self._decode(self._window)
        return new


__all__ = ["ByteDetokenizer", "Detokenizer", "Utf8Stream", "WindowDetokenizer"]
