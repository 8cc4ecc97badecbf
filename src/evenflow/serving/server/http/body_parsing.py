"""From the bytes of a body to a typed request: everything wrong with it becomes one InvalidRequest.

A field is one of four: served (in the type), harmless (known, changes nothing), not implemented (refused unless it holds
a value that changes nothing) or unknown (refused, or ignored and named in a warning header, as the server was told).
"""

from __future__ import annotations

import asyncio
import re
from typing import Generic, TypeVar

import msgspec
from starlette.requests import Request

from evenflow.base.errors import InvalidRequest
from evenflow.serving.server.http.body_errors import BodyTooLarge
from evenflow.serving.server.http.body_reading import check_media_type, read_body
from evenflow.serving.server.http.json_shape import json_shape
from evenflow.serving.server.http.known_fields import HARMLESS, NOT_IMPLEMENTED
from evenflow.serving.server.http.leniency import repaired

T = TypeVar("T", bound=msgspec.Struct)

MOST_VALUES = 1 << 18
"""Values in one body: entries of all its lists and fields of all its objects."""
MOST_FIELDS = 1 << 16
"""Of these, fields of objects, which cost more."""
UNCOUNTED_BYTES = 1 << 17
"""A body up to here is decoded as it is: it cannot hold enough to keep others waiting."""
_BOM = b"\xef\xbb\xbf"
_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_HEADER_SAFE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_NAMED = 16
_keys_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class BodyParser(Generic[T]):
    """Reads and decodes bodies of one type. ``unknown_fields``: one of known_fields.UNKNOWN_FIELDS."""

    def __init__(self, kind: type[T], *, unknown_fields: str = "refuse") -> None:
        self.kind = kind
        self._ignores_unknown = unknown_fields == "ignore"
        self._decoder = msgspec.json.Decoder(kind)
        self._served = frozenset(field.encode_name for field in msgspec.structs.fields(kind))

    async def read(self, request: Request, max_bytes: int) -> tuple[T, tuple[str, ...]]:
        """The request and the names of the fields that were ignored. Raises InvalidRequest, or one of body_errors.py."""
        return self.parse(await read_json(request, max_bytes))

    def parse(self, body: bytes) -> tuple[T, tuple[str, ...]]:
        """The request and the names of the fields that were ignored. Raises InvalidRequest."""
        try:
            raw = _keys_decoder.decode(body)
            ignored = self._check_fields(raw)
            return self._decode(body, raw), tuple(sorted(ignored))
        except msgspec.ValidationError as error:
            raise _invalid(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the body is not JSON: {error}") from None
        except RecursionError:
            raise InvalidRequest("the body is nested too deeply") from None

    def _decode(self, body: bytes, raw: dict[str, msgspec.Raw]) -> T:
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            if not repaired(raw, error, self._decoder):
                raise
        return self._decoder.decode(msgspec.json.encode(raw))

    def _check_fields(self, raw: dict[str, msgspec.Raw]) -> list[str]:
        """The unknown ones, if they are to be ignored. Raises InvalidRequest."""
        ignored = []
        for name, value in raw.items():
            if name in self._served or name in HARMLESS:
                continue
            if name in NOT_IMPLEMENTED:
                self._check_not_implemented(name, value)
            elif bytes(value) != b"null":
                if not self._ignores_unknown:
                    raise InvalidRequest(
                        f"{name[:80]} is not a field that this server knows; allowed: leave it out, or start the server with "
                        "--unknown-fields ignore",
                        name[:80],
                    )
                ignored.append(name)
        return ignored

    @staticmethod
    def _check_not_implemented(name: str, raw: msgspec.Raw) -> None:
        allowed = NOT_IMPLEMENTED[name]
        value = msgspec.json.decode(raw)
        if not any(isinstance(value, bool) == isinstance(harmless, bool) and value == harmless for harmless in allowed):
            listed = ", ".join(msgspec.json.encode(harmless).decode() for harmless in allowed)
            raise InvalidRequest(f"{name} is not implemented by this server; allowed: leave it out, or {listed}", name)


async def read_json(request: Request, max_bytes: int) -> bytes:
    """The bytes of a JSON body that holds no more than is decoded. Raises UnsupportedMedia or BodyTooLarge."""
    check_media_type(request.headers)
    body = await read_body(request, max_bytes)
    if len(body) > UNCOUNTED_BYTES:
        await _check_shape(body)
    return body[len(_BOM) :] if body.startswith(_BOM) else body


def ignored_fields_header(ignored: tuple[str, ...]) -> dict[str, str]:
    """The warning header that names what was ignored; names that do not fit a header are counted only."""
    if not ignored:
        return {}
    named = [name for name in ignored if _HEADER_SAFE.fullmatch(name)][:_MOST_NAMED]
    if len(named) < len(ignored):
        named.append(f"and {len(ignored) - len(named)} more")
    return {"x-evenflow-ignored-fields": ", ".join(named)}


async def _check_shape(body: bytes) -> None:
    """Raise BodyTooLarge for a body that holds more values than are decoded. Counted on a thread."""
    shape = await asyncio.to_thread(json_shape, body)
    num_values = shape.num_commas + 1
    if num_values > MOST_VALUES:
        raise BodyTooLarge(f"the body holds {num_values} values; allowed: {MOST_VALUES}")
    if shape.num_colons > MOST_FIELDS:
        raise BodyTooLarge(f"the body holds {shape.num_colons} fields; allowed: {MOST_FIELDS}")


def _invalid(message: str) -> InvalidRequest:
    """msgspec's "Expected `int`, got `str` - at `$.n`" with the field first."""
    match = _PATH.match(message)
    assert match is not None
    what, path = match["what"].replace("`", ""), (match["path"] or "").lstrip(".")
    missing = re.search(r"missing required field (\w+)", what)
    if missing:
        field = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidRequest(f"{field} is missing; it is required", field)
    if not path:
        return InvalidRequest(f"the body is wrong: {what}")
    return InvalidRequest(f"{path}: {what[0].lower()}{what[1:]}", path)


__all__ = ["MOST_FIELDS", "MOST_VALUES", "BodyParser", "ignored_fields_header", "read_json"]
