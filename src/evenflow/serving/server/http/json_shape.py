"""How much there is in a JSON text, counted before it is decoded: without building anything, and off the event loop.

A few bytes of JSON can stand for a Python object of a hundred, and decoding holds the interpreter; so a large body is
counted first, in pieces, by numpy, which lets others run meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CHUNK_BYTES = 1 << 20
_BACKSLASH = 0x5C


@dataclass(frozen=True, slots=True)
class JsonShape:
    """Structural signs of a JSON text: those inside its strings do not count."""

    num_commas: int
    """One less than the values of each list, and than the fields of each object."""
    num_colons: int
    """Fields of all objects."""


def json_shape(text: bytes) -> JsonShape:
    """Count. Whether the text is JSON at all is not looked at."""
    num_commas = num_colons = 0
    is_inside = False
    start = 0
    while start < len(text):
        end = min(start + _CHUNK_BYTES, len(text))
        while end < len(text) and text[end - 1] == _BACKSLASH:  # an escape must not be cut in two
            end += 1
        chunk = text[start:end]
        start = end
        if b"\\" in chunk:
            chunk = chunk.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        signs = np.frombuffer(chunk, np.uint8)
        is_quote = signs == ord('"')
        num_quotes_before = np.cumsum(is_quote, dtype=np.int32)
        is_outside = (num_quotes_before & 1) == int(is_inside)
        num_commas += int(np.count_nonzero((signs == ord(",")) & is_outside))
        num_colons += int(np.count_nonzero((signs == ord(":")) & is_outside))
        is_inside ^= bool(int(num_quotes_before[-1]) & 1)
    return JsonShape(num_commas, num_colons)
