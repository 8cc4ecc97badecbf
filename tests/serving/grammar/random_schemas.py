"""JSON schemas at random, each with a value: what clients write, nested, combined and recursive."""

from __future__ import annotations

from random import Random
from typing import Any

NAMES = ("name", "n", "kind", "Preis in €", 'a "b"', "back\\slash", "x/y", "städte", "ok", "items", "id", "🎉")
WORDS = ("yes", "no", "", "honey cake", 'she said "go"', "tab\there", "ünï", "🎉🎉", "a\nb", "null", "1")
PATTERNS = ("^[a-z]{2,5}$", "^(red|blue)-[0-9]+$", r"^\d{4}-\d{2}$", r"^\w+( \w+)?$", "[abc]", "^[A-ZÄÖ]")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email", "duration", "hostname")


class SchemaMaker:
    """Schemas of one seed."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self._names: list[str] = []
        """Definitions that a reference may name."""

    def schema(self) -> dict[str, Any]:
        """The next one: an object or an array more often than not, with definitions every third time."""
        rng = self._rng
        self._names = [f"d{i}" for i in range(rng.randint(1, 2))] if rng.random() < 0.33 else []
        root = rng.choice((self._object, self._object, self._array, self._any))(3)
        if self._names:
            # A definition's own references stand where its value may leave them out, so that every recursion can end.
            root["$defs"] = {name: self._definition() for name in self._names}
        return root

    def _definition(self) -> dict[str, Any]:
        optional = {"next": {"$ref": f"#/$defs/{self._rng.choice(self._names)}"}}
        return {
            "type": "object",
            "properties": {"v": self._leaf(), **optional},
            "required": ["v"],
            "additionalProperties": False,
        }

    def _any(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        if self._names and rng.random() < 0.2:
            return {"$ref": f"#/$defs/{rng.choice(self._names)}"}
        if depth == 0:
            return self._leaf()
        return rng.choice((self._leaf, self._leaf, lambda: self._object(depth - 1), lambda: self._array(depth - 1),
                           lambda: self._either(depth - 1), lambda: self._all(depth - 1)))()  # fmt: skip

    def _leaf(self) -> dict[str, Any]:
        return self._rng.choice((self._integer, self._number, self._string, self._string, self._constant, self._plain))()

    def _plain(self) -> dict[str, Any]:
        kinds = ["null", "boolean", "integer", "string"]
        return {"type": self._rng.choice((*kinds, self._rng.sample(kinds, 2)))}

    def _constant(self) -> dict[str, Any]:
        values = self._rng.sample([*WORDS, 0, -7, 2.5, True, None, ["a", 1], {"k": "v"}], 3)
        return {"const": values[0]} if self._rng.random() < 0.3 else {"enum": values}

    def _integer(self) -> dict[str, Any]:
        rng = self._rng
        least = rng.randint(-2000, 2000)
        schema: dict[str, Any] = {"type": "integer"}
        if rng.random() < 0.7:
            schema[rng.choice(("minimum", "exclusiveMinimum"))] = least
        if rng.random() < 0.7:
            schema[rng.choice(("maximum", "exclusiveMaximum"))] = least + rng.randint(40, 5000)
        if rng.random() < 0.2:
            schema["multipleOf"] = rng.choice((2, 5, 7))
        return schema

    def _number(self) -> dict[str, Any]:
        rng = self._rng
        least = round(rng.uniform(-90, 90), rng.randint(0, 3))
        schema: dict[str, Any] = {"type": "number"}
        if rng.random() < 0.7:
            schema[rng.choice(("minimum", "exclusiveMinimum"))] = least
        if rng.random() < 0.7:
            schema[rng.choice(("maximum", "exclusiveMaximum"))] = round(least + rng.uniform(1, 300), 2)
        return schema

    def _string(self) -> dict[str, Any]:
        rng = self._rng
        schema: dict[str, Any] = {"type": "string"}
        what = rng.random()
        if what < 0.35:
            least = rng.randint(0, 6)
            schema |= {"minLength": least, "maxLength": least + rng.randint(0, 12)}
        elif what < 0.6:
            schema["pattern"] = rng.choice(PATTERNS)
        elif what < 0.75:
            schema["format"] = rng.choice(FORMATS)
        return schema

    def _array(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        schema: dict[str, Any] = {"type": "array", "items": self._any(depth)}
        if rng.random() < 0.3:
            schema["prefixItems"] = [self._any(depth) for _ in range(rng.randint(1, 2))]
            if rng.random() < 0.5:
                schema["items"] = False
        least = rng.randint(0, 2)
        schema |= {"minItems": least, "maxItems": least + rng.randint(0, 3)}
        return schema

    def _object(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        names = rng.sample(NAMES, rng.randint(0, 4))
        schema: dict[str, Any] = {"type": "object", "properties": {name: self._any(depth) for name in names}}
        schema["required"] = [name for name in names if rng.random() < 0.6]
        schema["additionalProperties"] = False
        what = rng.random()
        if what < 0.15:
            schema["additionalProperties"] = self._leaf()
        elif what < 0.25:
            schema["patternProperties"] = {"^p_[a-z]$": self._leaf()}
        elif what < 0.3:
            schema["minProperties"] = len(schema["required"])
        elif what < 0.35:
            del schema["type"]
            schema["type"] = ["object", "null"]
        return schema

    def _either(self, depth: int) -> dict[str, Any]:
        if self._rng.random() < 0.5:
            return {"anyOf": [self._any(depth), self._any(depth)]}
        # Of different types, so that exactly one holds.
        return {"oneOf": [self._string(), self._rng.choice((self._integer(), {"type": "null"}, self._array(depth)))]}

    def _all(self, depth: int) -> dict[str, Any]:
        """Two objects' properties together, or two bounds of one number."""
        if self._rng.random() < 0.5:
            return {"allOf": [{"type": "integer", "minimum": self._rng.randint(-50, 0)}, {"maximum": self._rng.randint(1, 50)}]}
        first, second = self._any(depth), self._leaf()
        return {
            "allOf": [
                {"type": "object", "properties": {"a": first}, "required": ["a"]},
                {"type": "object", "properties": {"b": second}},
            ]
        }
