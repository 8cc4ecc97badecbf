"""What clients write that JSON's types do not quite say: whole numbers as 2.0, and true and false as 1 and 0.

Only what has one meaning is taken: 2.5 is no number of tokens, and "2" is a text.
"""

from __future__ import annotations

import re

import msgspec

_TOP_LEVEL = re.compile(r"Expected `(?P<wanted>[^`]*)`, got `(?P<got>\w+)` - at `\$\.(?P<name>\w+)`")


def repaired(raw: dict[str, msgspec.Raw], error: msgspec.ValidationError, decoder: msgspec.json.Decoder) -> bool:
    """Put into ``raw`` what its top-level fields mean, until ``decoder`` takes them; False if one has no other meaning."""
    problem: msgspec.ValidationError | None = error
    for _ in range(len(raw)):
        match = _TOP_LEVEL.fullmatch(str(problem))
        if match is None:
            return False
        meant = _meant(bytes(raw[match["name"]]), match["wanted"].split(" | "), match["got"])
        if meant is None:
            return False
        raw[match["name"]] = msgspec.Raw(meant)
        try:
            decoder.decode(msgspec.json.encode(raw))
        except msgspec.ValidationError as next_error:
            problem = next_error
        else:
            return True
    return False


def _meant(text: bytes, wanted: list[str], got: str) -> bytes | None:
    if "int" in wanted and got == "float":
        number = msgspec.json.decode(text)
        return str(int(number)).encode() if abs(number) < 1 << 53 and number == int(number) else None
    if "bool" in wanted and got == "int":
        return {b"0": b"false", b"1": b"true"}.get(text)
    if "int" in wanted and "null" in wanted and text == b"false":
        return b"null"
    return None
