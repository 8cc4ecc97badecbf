"""Structural tags as a Lark grammar: free text in which a trigger begins a part that follows a schema.

Both of vLLM's forms are read: ``{"structures": [{"begin", "schema", "end"}], "triggers": [...]}``, and ``{"format":
{"type": "triggered_tags", ...}}`` with tags whose content is a JSON schema, a regular expression or any text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from evenflow.base.errors import InvalidRequest
from evenflow.serving.grammar.json_schema import read_schema

PARAM = "structural_tag"
_MOST_TAGS = 256


@dataclass(frozen=True, slots=True)
class Tag:
    """One kind of part: begins with ``begin``, holds what ``content`` (a Lark expression) describes, ends with ``end``."""

    trigger: str
    begin: str
    content: str
    end: str


@dataclass(frozen=True, slots=True)
class TaggedText:
    """Free text and tags. ``is_required``: at least one tag; ``is_single``: at most one; ``is_text_free``: text between."""

    tags: Sequence[Tag]
    is_required: bool = False
    is_single: bool = False
    is_text_free: bool = True


def parse_structural_tag(text: str) -> TaggedText:
    """Return what the JSON ``text`` describes. Raises InvalidRequest."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{PARAM} is no JSON: {error}", PARAM) from None
    if not isinstance(said, dict):
        raise InvalidRequest(f"{PARAM} is {type(said).__name__}; allowed: an object", PARAM)
    if "format" in said:
        return _of_format(said["format"])
    triggers, structures = said.get("triggers"), said.get("structures")
    if not _is_texts(triggers) or not isinstance(structures, list) or not structures:
        raise InvalidRequest(f"{PARAM} needs triggers (texts) and structures (objects with begin, schema and end)", PARAM)
    return TaggedText([_tag(part, triggers) for part in _few(structures)])


def to_lark(tagged: TaggedText) -> str:
    """Return the Lark grammar of ``tagged``."""
    one = " | ".join(f"tag_{i}" for i in range(len(tagged.tags)))
    tail = "TEXT" if tagged.is_text_free else '""'
    if tagged.is_required:
        start = f"({one}) {tail}" if tagged.is_single else f"({one})+ {tail}"
    else:
        start = f"({one})? {tail}" if tagged.is_single else f"({one})* {tail}"
    lines = ["%llguidance {}", f"start: {start}", "TEXT: /(.|\\n)*/"]
    for i, tag in enumerate(tagged.tags):
        rest = tag.begin.removeprefix(tag.trigger)
        body = " ".join(part for part in (_text(rest), tag.content, _text(tag.end)) if part)
        if tagged.is_text_free:
            lines += [f"tag_{i}_trigger[lazy]: TEXT {_text(tag.trigger)}", f"tag_{i}: tag_{i}_trigger {body}"]
        else:
            lines.append(f"tag_{i}: {_text(tag.trigger)} {body}")
    return "\n".join(lines) + "\n"


def json_content(schema: Mapping[str, Any]) -> str:
    """Return the Lark expression of a JSON text that follows ``schema``."""
    return f"%json {json.dumps(schema, ensure_ascii=False)}"


def _of_format(said: Any) -> TaggedText:
    kind = said.get("type") if isinstance(said, dict) else None
    if kind == "triggered_tags":
        triggers, tags = said.get("triggers"), said.get("tags")
        if not _is_texts(triggers) or not isinstance(tags, list) or not tags:
            raise InvalidRequest(f"{PARAM}: triggered_tags needs triggers (texts) and tags (objects)", PARAM)
        return TaggedText(
            [_format_tag(tag, triggers) for tag in _few(tags)],
            is_required=said.get("at_least_one") is True,
            is_single=said.get("stop_after_first") is True,
        )
    if kind == "tag":
        begin = said.get("begin")
        return TaggedText(
            [_format_tag(said, [begin] if isinstance(begin, str) else [])],
            is_required=True,
            is_single=True,
            is_text_free=False,
        )
    raise InvalidRequest(f"{PARAM} has a format of type {kind!r}; allowed: triggered_tags, tag", PARAM)


def _tag(part: Any, triggers: Sequence[str]) -> Tag:
    if not isinstance(part, dict) or not isinstance(part.get("begin"), str) or not isinstance(part.get("end"), str):
        raise InvalidRequest(f"{PARAM}: a structure needs begin and end, both texts", PARAM)
    schema = read_schema(json.dumps(part.get("schema", {})), f"{PARAM}.schema")
    return Tag(_trigger_of(part["begin"], triggers), part["begin"], json_content(schema), part["end"])


def _format_tag(tag: Any, triggers: Sequence[str]) -> Tag:
    if not isinstance(tag, dict) or not isinstance(tag.get("begin"), str) or not tag["begin"]:
        raise InvalidRequest(f"{PARAM}: a tag needs begin, a text that is not empty", PARAM)
    content, end = tag.get("content"), tag.get("end", "")
    if not isinstance(content, dict):
        raise InvalidRequest(f"{PARAM}: a tag needs content, an object", PARAM)
    kind = content.get("type")
    if not isinstance(end, str):
        raise InvalidRequest(f"{PARAM}: end is {type(end).__name__}; allowed: a text", PARAM)
    if kind == "json_schema":
        expression = json_content(read_schema(json.dumps(content.get("json_schema", {})), f"{PARAM}.json_schema"))
    elif kind == "regex" and isinstance(content.get("pattern"), str):
        expression = f"/{content['pattern'].replace('/', chr(92) + '/')}/"
    elif kind == "const_string" and isinstance(content.get("value"), str):
        expression = _text(content["value"])
    else:
        raise InvalidRequest(f"{PARAM} has content of type {kind!r}; allowed: json_schema, regex, const_string", PARAM)
    return Tag(_trigger_of(tag["begin"], triggers), tag["begin"], expression, end)


def _trigger_of(begin: str, triggers: Sequence[str]) -> str:
    for trigger in triggers:
        if trigger and begin.startswith(trigger):
            return trigger
    raise InvalidRequest(f"{PARAM}: no trigger is a beginning of {begin[:80]!r}; triggers: {list(triggers)[:8]}", PARAM)


def _few(parts: list[Any]) -> list[Any]:
    if len(parts) > _MOST_TAGS:
        raise InvalidRequest(f"{PARAM} has {len(parts)} tags; allowed: at most {_MOST_TAGS}", PARAM)
    return parts


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text for text in value)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
