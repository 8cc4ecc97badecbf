"""From the bytes of a body to a typed request: everything wrong with it becomes one InvalidRequest.

A field is one of four: served (in the type), harmless (known, changes nothing), not implemented (refused
unless it holds a value that changes nothing) or unknown (ignored, and named in a warning header).
"""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

import msgspec
from starlette.requests import Request

from evenflow.base.errors import InvalidRequest

T = TypeVar("T", bound=msgspec.Struct)

HARMLESS = frozenset(
    {"metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "request_id"}
)
"""Known fields that change nothing here."""

NOT_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "priority": (None, 0),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "chat_template": (None,),
    "continue_final_message": (None, False),
    "documents": (None, []),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1),
    "bad_words": (None, []),
    "allowed_token_ids": (None,),
    "truncate_prompt_tokens": (None,),
    "prompt_embeds": (None,),
    "logits_processors": (None, []),
}
"""Field to the values it may hold all the same, because they ask for nothing."""

_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_HEADER_SAFE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_NAMED = 16
_keys_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class BodyParser(Generic[T]):
    """Decodes bodies of one type."""

    def __init__(self, kind: type[T]) -> None:
        self.kind = kind
        self._decoder = msgspec.json.Decoder(kind)
        self._served = frozenset(field.encode_name for field in msgspec.structs.fields(kind))

    def parse(self, body: bytes) -> tuple[T, tuple[str, ...]]:
        """The request and the names of the fields that were ignored. Raises InvalidRequest."""
        try:
            raw = _keys_decoder.decode(body)
            for name in raw.keys() - self._served:
                self._check_not_implemented(name, raw[name])
            request = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise _invalid(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the body is not JSON: {error}") from None
        except RecursionError:
            raise InvalidRequest("the body is nested too deeply") from None
        unknown = raw.keys() - self._served - HARMLESS - NOT_IMPLEMENTED.keys()
        return request, tuple(sorted(unknown))

    @staticmethod
    def _check_not_implemented(name: str, raw: msgspec.Raw) -> None:
        allowed = NOT_IMPLEMENTED.get(name)
        if allowed is None:
            return
        value = msgspec.json.decode(raw)
        if not any(isinstance(value, bool) == isinstance(harmless, bool) and value == harmless for harmless in allowed):
            listed = ", ".join(msgspec.json.encode(harmless).decode() for harmless in allowed)
            raise InvalidRequest(f"{name} is not implemented by this server; allowed: leave it out, or {listed}", name)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises InvalidRequest as soon as it is larger than ``max_bytes``."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def ignored_fields_header(ignored: tuple[str, ...]) -> dict[str, str]:
    """The warning header that names what was ignored; names that do not fit a header are counted only."""
    if not ignored:
        return {}
    named = [name for name in ignored if _HEADER_SAFE.fullmatch(name)][:_MOST_NAMED]
    if len(named) < len(ignored):
        named.append(f"and {len(ignored) - len(named)} more")
    return {"x-evenflow-ignored-fields": ", ".join(named)}


def _too_large(max_bytes: int) -> InvalidRequest:
    return InvalidRequest(f"the body is too large; allowed: {max_bytes} bytes")


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
