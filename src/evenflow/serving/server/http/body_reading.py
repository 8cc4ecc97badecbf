"""The bytes of a body: of the right type, unpacked, and never more of them than allowed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from starlette.requests import Request

from evenflow.serving.server.http.body_errors import BodyTooLarge, UnsupportedMedia

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def check_media_type(headers: Mapping[str, str]) -> None:
    """Raise UnsupportedMedia unless the body says that it is JSON: what a web page may send without asking is not."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (media_type.startswith("application/") and media_type.endswith("+json")):
        raise UnsupportedMedia(f"the content type is {media_type[:80]!r}; allowed: application/json")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, unpacked. Raises BodyTooLarge as soon as it is larger than ``max_bytes``, UnsupportedMedia."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    unpack = _unpacker(request.headers.get("content-encoding", ""), max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        part = chunk if unpack is None else unpack(chunk)
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(part)
    if unpack is not None:
        unpack.check_complete()
    return b"".join(chunks)


class _Unpack:
    """Unpacks a stream of zlib or gzip, one more byte than allowed at most."""

    def __init__(self, encoding: str, max_bytes: int) -> None:
        self._encoding = encoding
        self._left = max_bytes + 1
        self._max_bytes = max_bytes
        self._stream = zlib.decompressobj(_WINDOW_BITS[encoding])

    def __call__(self, packed: bytes) -> bytes:
        if self._stream.eof:
            return b""
        try:
            part = self._stream.decompress(packed, max(1, self._left))
        except zlib.error as error:
            raise UnsupportedMedia(f"the body is not {self._encoding}: {error}") from None
        self._left -= len(part)
        if self._left <= 0:
            raise _too_large(self._max_bytes)
        return part

    def check_complete(self) -> None:
        """Raise UnsupportedMedia if the stream ended in its middle."""
        if not self._stream.eof:
            raise UnsupportedMedia(f"the {self._encoding} body ends in its middle")


def _unpacker(encoding: str, max_bytes: int) -> _Unpack | None:
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in _WINDOW_BITS:
        allowed = "gzip, deflate, identity"
        raise UnsupportedMedia(f"the content encoding is {encoding[:40]!r}; allowed: {allowed}", "content-encoding")
    return _Unpack(encoding, max_bytes)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is too large; allowed: {max_bytes} bytes")
