"""Schemas that no answer can follow are refused before anything is compiled."""

from __future__ import annotations

import json

import pytest

from evenflow.base.errors import InvalidRequest
from evenflow.serving.grammar.json_schema import read_schema

NODE = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object", "colour": 1}, "colour"),
        ({"properties": {"a": {"minimun": 1}}}, "'minimun' at /properties/a"),
        ({"anyOf": [{"type": "null"}, {"lenght": 3}]}, "'lenght' at /anyOf/1"),
        (NODE, "no finite value"),
        ({"$ref": "#"}, "no finite value"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "no finite value"),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "no finite value"),
        ([1], "allowed: a JSON schema"),
        (False, "allowed: a JSON schema"),
    ],
)
def test_what_is_wrong_is_named(schema, message):
    with pytest.raises(InvalidRequest, match="json") as caught:
        read_schema(json.dumps(schema), "json")
    assert message in str(caught.value)
    assert caught.value.param == "json"


@pytest.mark.parametrize("text", ["", "{", "nul", '{"a": }'])
def test_text_that_is_no_json(text):
    with pytest.raises(InvalidRequest, match="no JSON"):
        read_schema(text, "json")


def test_nesting_is_bounded():
    deep = "[" * 100_000
    with pytest.raises(InvalidRequest):
        read_schema(deep, "json")
    schema: dict = {}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidRequest, match="64 levels"):
        read_schema(json.dumps(schema), "json")


def test_references_in_many_ways_take_bounded_work():
    """Each definition needs the next one twice: 2 to the 200th paths, and no end."""
    definitions = {
        f"d{i}": {
            "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}, "b": {"$ref": f"#/$defs/d{i + 1}"}},
            "required": ["a", "b"],
        }
        for i in range(200)
    }
    definitions["d200"] = {"$ref": "#/$defs/d0"}
    with pytest.raises(InvalidRequest):
        read_schema(json.dumps({"$ref": "#/$defs/d0", "$defs": definitions}), "json")
    definitions["d200"] = {"type": "integer"}
    assert read_schema(json.dumps({"$ref": "#/$defs/d0", "$defs": definitions}), "json")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}, "required": ["next"]},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": ["object", "null"], "properties": {"n": {"$ref": "#"}}, "required": ["n"]},
        {"x-note": 1, "title": "t", "description": "d"},
        {"$ref": "#/$defs/leaf", "$defs": {"leaf": {"enum": [1]}}},
    ],
)
def test_recursion_with_an_end_is_allowed(schema):
    assert read_schema(json.dumps(schema), "json") == schema


def test_true_allows_anything():
    assert read_schema("true", "json") == {}
