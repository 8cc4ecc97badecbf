"""What a JSON schema must be for an answer to be written by it: known keywords, and an end to every recursion."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from evenflow.base.errors import InvalidRequest
from evenflow.serving.core.structured import MAX_DEPTH
from evenflow.serving.grammar.plain_schema import in_plain_words

_ANNOTATIONS = frozenset(
    """title description default examples example deprecated readOnly writeOnly discriminator nullable
    $schema $id $comment $anchor $vocabulary contentMediaType contentEncoding strict propertyOrdering""".split()  # noqa: SIM905
)
"""Keywords that say nothing about which values are valid, or that other layers have dealt with."""
_ASSERTIONS = frozenset(
    """type enum const properties required additionalProperties patternProperties items prefixItems additionalItems
    minItems maxItems minLength maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf
    anyOf oneOf allOf not if then else $ref $dynamicRef $dynamicAnchor $defs definitions dependentRequired
    dependentSchemas dependencies minProperties maxProperties propertyNames contains minContains maxContains
    uniqueItems unevaluatedItems unevaluatedProperties contentSchema""".split()  # noqa: SIM905
)
"""Keywords of the drafts 7 to 2020-12. Those that the grammar engine cannot honour are refused by it, by name."""
_MOST_WORK = 100_000
_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "propertyNames", "contains", "additionalItems")


def read_schema(text: str, param: str) -> dict[str, Any]:
    """Return the schema in ``text``, in the words of the grammar engine.

    Raises InvalidRequest, naming ``param``, for what no answer can be written by.
    """
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param} is no JSON: {error}", param) from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{param} is {json.dumps(schema)[:80]}; allowed: a JSON schema, which is an object", param)
    for where, part in _parts(schema, "", 0, param):
        for keyword in part:
            if keyword not in _ANNOTATIONS and keyword not in _ASSERTIONS and not keyword.startswith("x-"):
                raise InvalidRequest(
                    f"{param} has the unknown keyword {keyword!r} at {where or 'its top'}; "
                    "allowed: those of JSON Schema 2020-12, and x-... for notes",
                    param,
                )
    if not _Finiteness(schema, param).of_root():
        raise InvalidRequest(f"{param} describes no finite value: its recursion has no end", param)
    return in_plain_words(schema)


def _parts(schema: Any, where: str, depth: int, param: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every schema in ``schema``, itself included, with its place."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{param} is nested more than {MAX_DEPTH} levels deep", param)
    if not isinstance(schema, dict):
        return
    yield where, schema
    for key in _MAPS_OF_SCHEMAS:
        if isinstance(below := schema.get(key), dict):
            for name, part in below.items():
                yield from _parts(part, f"{where}/{key}/{name}", depth + 1, param)
    for key in _LISTS_OF_SCHEMAS:
        if isinstance(several := schema.get(key), list):
            for i, part in enumerate(several):
                yield from _parts(part, f"{where}/{key}/{i}", depth + 1, param)
    for key in _SCHEMAS:
        if isinstance(one := schema.get(key), dict):
            yield from _parts(one, f"{where}/{key}", depth + 1, param)


class _Finiteness:
    """Whether a schema has a finite value: the least solution over its references, found by repetition.

    A reference counts as without end until its target is known to have a finite value. The work is bounded: a schema
    that would take more than ``_MOST_WORK`` looks at a part is refused.
    """

    def __init__(self, root: Mapping[str, Any], param: str) -> None:
        self._root, self._param = root, param
        self._is_finite: dict[str, bool] = {}
        self._work = 0

    def of_root(self) -> bool:
        """Return False only if every value would contain another one of the same kind, without end."""
        while True:
            before = sum(self._is_finite.values()), len(self._is_finite)
            if self._has_value(self._root):
                return True
            for reference in list(self._is_finite):
                if not self._is_finite[reference]:
                    target = _resolve(reference, self._root)
                    self._is_finite[reference] = target is None or self._has_value(target)
            if (sum(self._is_finite.values()), len(self._is_finite)) == before:
                return False

    def _has_value(self, schema: Any) -> bool:
        self._work += 1
        if self._work > _MOST_WORK:
            raise InvalidRequest(f"{self._param} refers to itself in too many ways to be checked", self._param)
        if not isinstance(schema, dict):
            return schema is not False
        reference = schema.get("$ref")
        if isinstance(reference, str) and not self._is_finite.setdefault(reference, False):
            return False
        for key in ("anyOf", "oneOf"):
            several = schema.get(key)
            if isinstance(several, list) and several and not any(self._has_value(part) for part in several):
                return False
        if isinstance(parts := schema.get("allOf"), list) and not all(self._has_value(part) for part in parts):
            return False
        if "enum" in schema or "const" in schema:
            return True
        kinds = schema.get("type")
        if isinstance(kinds, list) and any(kind not in ("object", "array") for kind in kinds):
            return True
        required, properties = schema.get("required"), schema.get("properties")
        if isinstance(required, list) and isinstance(properties, dict):
            needed = [properties[name] for name in required if isinstance(name, str) and name in properties]
            if not all(self._has_value(part) for part in needed):
                return False
        least = schema.get("minItems")
        if isinstance(least, int | float) and least > 0:
            first = schema.get("prefixItems") or [schema.get("items", {})]
            return isinstance(first, list) and all(self._has_value(part) for part in first[: int(least)])
        return True


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """Return what a local JSON pointer points at; None for any other reference, which the grammar engine refuses."""
    if not reference.startswith("#"):
        return None
    found: Any = root
    for step in reference[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found
