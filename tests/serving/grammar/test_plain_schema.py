"""Schemas as generators write them, in the engine's words: what follows the new one is valid by the old one."""

from __future__ import annotations

import copy
import json
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import pytest

from evenflow.base.errors import ConstraintFailed
from evenflow.demo import assets
from evenflow.serving.core.structured import StructuredOutputs
from evenflow.serving.grammar.compiler import GrammarCompiler
from evenflow.serving.grammar.mask_ahead import mask_of
from evenflow.serving.grammar.plain_schema import in_plain_words
from evenflow.serving.text import Tokenizer

EOS = 0
CAT = {"type": "object", "properties": {"kind": {"const": "cat", "default": "cat"}, "n": {"type": "integer"}}}
DOG = {"type": "object", "properties": {"kind": {"const": "dog"}, "w": {"type": "string", "maxLength": 3}}, "required": ["w"]}
CLOSED = {"additionalProperties": False}
DICT = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}}
TREE = {"type": "object", "properties": {"kind": {"const": "leaf"}, "sub": {"$ref": "#/$defs/T"}}, **CLOSED}
SCHEMAS: dict[str, dict[str, Any]] = {
    "told apart": {"oneOf": [{**CAT, **CLOSED}, {**DOG, **CLOSED}]},
    "told apart by reference": {
        "type": "array",
        "items": {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "discriminator": {"propertyName": "kind"}},
        "maxItems": 2,
        "$defs": {"Cat": {**CAT, **CLOSED}, "Dog": {**DOG, **CLOSED}},
    },
    "told apart, recursive": {
        "$ref": "#/$defs/T",
        "$defs": {"T": {"oneOf": [TREE, {"type": "object", "properties": {"kind": {"enum": ["end"]}}, **CLOSED}]}},
    },
    "names of a set": {**DICT, "propertyNames": {"$ref": "#/$defs/E"}, "$defs": {"E": {"type": "string", "enum": ["a", "b"]}}},
    "one name": {**DICT, "propertyNames": {"const": "only"}},
    "names of a pattern": {**DICT, "propertyNames": {"pattern": "^k[0-9]$"}},
    "names of a length": {**DICT, "propertyNames": {"minLength": 2, "maxLength": 3}},
    "names of any kind": {**DICT, "propertyNames": {"type": "string"}},
    "foreign formats": {
        "type": "object",
        "properties": {"p": {"type": "string", "format": "path", "maxLength": 5}, "n": {"type": "integer", "format": "int32"}},
        "required": ["p", "n"],
        **CLOSED,
    },
    "whole counts": {"type": "array", "items": {"type": "boolean"}, "minItems": 1.0, "maxItems": 2.0, "uniqueItems": False},
    "nothing unevaluated": {"type": "object", "properties": {"a": {"type": "null"}}, "unevaluatedProperties": False},
    "no more items": {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "unevaluatedItems": False},
    "a branch without a question": {"type": "integer", "then": {"minimum": 5}, "minContains": 2, "maximum": 9},
    "none that is contained": {
        "type": "array",
        "items": {"const": 2},
        "maxItems": 3,
        "contains": {"const": 1},
        "minContains": 0,
    },
    "decimal": {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(Path(assets.__file__).parent / "assets" / "base")


@pytest.fixture(scope="module")
def compiler(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.json_text(), 1024, (EOS,))


def walk(compiler: GrammarCompiler, tokenizer: Tokenizer, schema: dict[str, Any], rng: Random) -> str | None:
    """A text that the constraint allows; None if it became too long."""
    matcher, tokens = compiler.compile(StructuredOutputs(json=schema)), []
    for _ in range(120):
        words = mask_of(matcher)
        choices = [i for i in range(1024) if words[i // 32] >> (i % 32) & 1]
        token = EOS if EOS in choices and rng.random() < 0.5 else rng.choice(choices)
        if token == EOS:
            return tokenizer.decode(tokens)
        assert matcher.consume_token(token)
        tokens.append(token)
    return None


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_are_valid_by_the_schema_as_it_was_given(compiler, tokenizer, name):
    schema, rng = SCHEMAS[name], Random(1)
    given = copy.deepcopy(schema)
    texts = {text for _ in range(12) if (text := walk(compiler, tokenizer, schema, rng)) is not None}
    assert len(texts) > (name == "one name")
    for text in texts:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert schema == given, "the caller's own is left as it is"


def test_decimals_are_numbers(compiler, tokenizer):
    rng = Random(2)
    texts = [walk(compiler, tokenizer, SCHEMAS["decimal"], rng) for _ in range(20)]
    assert all(Decimal(json.loads(text)).is_finite() for text in texts if text is not None)


def test_what_needs_no_other_words_stays():
    schema = {
        "type": "object",
        "properties": {"a": {"oneOf": [{"type": "string", "format": "date"}, {"type": "null"}]}, "b": {"$ref": "#/$defs/B"}},
        "$defs": {"B": {"type": "array", "items": {"anyOf": [{"const": 1.0}, True]}, "minItems": 2}},
    }
    assert in_plain_words(schema) == schema


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {"const": 1}}, "contains"),
        ({"not": {"type": "string"}}, "not"),
        ({"if": {"type": "string"}, "then": {"maxLength": 3}}, "if"),
        ({"type": "object", "allOf": [{"properties": {"a": True}}], "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "object", "properties": {"a": True}, "propertyNames": {"maxLength": 3}}, "propertyNames"),
    ],
)
def test_what_cannot_be_followed_is_still_refused_by_name(compiler, schema, keyword):
    with pytest.raises(ConstraintFailed, match=keyword):
        compiler.compile(StructuredOutputs(json=schema))
