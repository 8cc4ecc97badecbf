"""A JSON schema in the words that the grammar engine knows. What follows the new one is valid by the old one.

Most rules here change no meaning. Where one narrows what may be said, it says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

KNOWN_FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri unknown".split())  # noqa: SIM905
"""Those that texts are held to. The draft calls ``format`` an annotation, and generators write many of their own."""
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties", "minContains", "maxContains")
_IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "dependentSchemas", "dependencies", "contains")
"""Keywords whose own properties and items count as evaluated."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONES = ("items", "additionalProperties", "not", "if", "then", "else", "propertyNames", "contains", "additionalItems",
         "unevaluatedProperties", "unevaluatedItems")  # fmt: skip
_MOST_STEPS = 8
"""From one reference to the next."""
_DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"
_PLAIN_DECIMAL = r"^[+-]?(\d+\.?\d*|\.\d+)$"
"""The same as pydantic's pattern of a decimal, without looking ahead."""


def in_plain_words(root: dict[str, Any]) -> dict[str, Any]:
    """Return ``root`` rewritten; it is left as it is. Its nesting has been found to be bounded."""
    rewriting = _Rewriting(root)
    plain: dict[str, Any] = rewriting.of(root)
    rewriting.require(plain)
    return plain


class _Rewriting:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._required: list[tuple[dict[str, Any], str]] = []
        """Branches of the new schema, and the property that they have to have."""

    def of(self, schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        plain = {key: self._below(key, value) for key, value in schema.items()}
        for rule in (_without_what_says_nothing, _evaluated, self._named, self._told_apart):
            rule(plain)
        return plain

    def _below(self, key: str, value: Any) -> Any:
        if key in _MAPS and isinstance(value, dict):
            return {name: self.of(part) for name, part in value.items()}
        if key in _LISTS and isinstance(value, list):
            return [self.of(part) for part in value]
        return self.of(value) if key in _ONES else value

    def _named(self, plain: dict[str, Any]) -> None:
        """``propertyNames`` without named properties: as properties or patterns."""
        names, patterns = plain.get("propertyNames"), plain.get("patternProperties")
        if not isinstance(names, dict) or plain.get("properties") or patterns:
            return
        names = self._target(names)
        value = plain.get("additionalProperties", {})
        said = set(names) - {"type", "title", "description"}
        if names.get("type", "string") != "string":
            return
        if said == {"enum"} or said == {"const"}:
            allowed = names["enum"] if "enum" in names else [names["const"]]
            plain["properties"] = {name: value for name in allowed if isinstance(name, str)}
        elif said == {"pattern"}:
            plain["patternProperties"] = {names["pattern"]: value}
        elif said and said <= {"minLength", "maxLength"}:
            plain["patternProperties"] = {rf"^[\s\S]{{{names.get('minLength', 0)},{names.get('maxLength', '')}}}$": value}
        elif said:
            return
        del plain["propertyNames"]
        if said:
            plain["additionalProperties"] = False

    def _told_apart(self, plain: dict[str, Any]) -> None:
        """``oneOf`` whose objects say by one property which they are: they all have to say it, which narrows the answer."""
        several = plain.get("oneOf")
        if not isinstance(several, list) or len(several) < 2:
            return
        words = [_words_by_property(self._target(part)) for part in several]
        for name in sorted(set(words[0]).intersection(*words[1:])):
            if len(set().union(*(one[name] for one in words))) == sum(len(one[name]) for one in words):
                self._required += [(part, name) for part in several]
                return

    def require(self, plain: Mapping[str, Any]) -> None:
        """Write down, in the new root and its parts, what ``oneOf`` found that objects have to say."""
        for part, name in self._required:
            branch = _follow(part, plain)
            if name not in branch.get("required", ()):
                branch["required"] = [*branch.get("required", ()), name]

    def _target(self, schema: Any) -> dict[str, Any]:
        return _follow(schema, self._root)


def _follow(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """What a local reference that stands alone points at; else ``schema`` itself; nothing for what is no object."""
    found = schema
    for _ in range(_MOST_STEPS):
        reference = found.get("$ref") if isinstance(found, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#/") or set(found) - {"$ref", "title", "description"}:
            break
        target: Any = root
        for step in reference.split("/")[1:]:
            target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
        found = target
    return found if isinstance(found, dict) else {}


def _words_by_property(branch: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """By property of an object schema with a fixed set of values: those, as JSON."""
    if branch.get("type") != "object" or not isinstance(branch.get("properties"), dict):
        return {}
    found = {}
    for name, part in branch["properties"].items():
        if isinstance(part, dict) and "const" in part:
            found[name] = frozenset({json.dumps(part["const"], sort_keys=True)})
        elif isinstance(part, dict) and isinstance(part.get("enum"), list):
            found[name] = frozenset(json.dumps(value, sort_keys=True) for value in part["enum"])
    return found


def _without_what_says_nothing(plain: dict[str, Any]) -> None:
    for key in _COUNTS:
        value = plain.get(key)
        if isinstance(value, float) and value.is_integer():
            plain[key] = int(value)
    if plain.get("format") not in KNOWN_FORMATS or plain.get("type") not in ("string", None):
        plain.pop("format", None)
    if plain.get("uniqueItems") is False:
        del plain["uniqueItems"]
    if plain.get("minContains") == 0 and "maxContains" not in plain:
        plain.pop("contains", None)
    if "contains" not in plain:
        plain.pop("minContains", None)
        plain.pop("maxContains", None)
    if "if" not in plain:
        plain.pop("then", None)
        plain.pop("else", None)
    elif "then" not in plain and "else" not in plain:
        del plain["if"]
    if plain.get("pattern") == _DECIMAL:
        plain["pattern"] = _PLAIN_DECIMAL


def _evaluated(plain: dict[str, Any]) -> None:
    """Where nothing is evaluated elsewhere, what is not evaluated is what is additional."""
    if any(key in plain for key in _IN_PLACE):
        return
    for key, other in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if key in plain:
            rest = plain.pop(key)
            plain.setdefault(other, rest)


__all__ = ["KNOWN_FORMATS", "in_plain_words"]
