"""The fields with which clients of OpenAI's, vLLM's, SGLang's and llama.cpp's servers say what an answer must look like."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from evenflow.base.errors import InvalidRequest
from evenflow.serving.core.structured import MAX_TEXT, StructuredOutputs

Pattern = Annotated[str, Meta(max_length=MAX_TEXT)]


class JsonSchemaFormat(msgspec.Struct, kw_only=True):
    """OpenAI's ``json_schema`` of a response format."""

    name: Annotated[str, Meta(max_length=256)] = "answer"
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    """Taken and not needed: every answer follows its schema."""


class ResponseFormat(msgspec.Struct, kw_only=True):
    """OpenAI's ``response_format``, and vLLM's with ``structural_tag``."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text", "json_object", "json_schema", "structural_tag"]})]
    json_schema: JsonSchemaFormat | None = None
    structures: list[Any] | None = None
    triggers: list[Any] | None = None
    format: dict[str, Any] | None = None


class StructuredOutputsBody(msgspec.Struct, kw_only=True):
    """vLLM's ``structured_outputs``: one of its first six."""

    json: str | dict[str, Any] | bool | None = None
    regex: Pattern | None = None
    choice: list[str] | None = None
    grammar: Pattern | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    whitespace_pattern: Annotated[str, Meta(max_length=256)] | None = None
    disable_any_whitespace: bool = False
    disable_fallback: bool = False
    """Taken and not needed: there is one engine for grammars."""
    disable_additional_properties: bool = False


class StructuredFields(msgspec.Struct, kw_only=True):
    """One of these at most says what the answer must look like."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsBody | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: Pattern | None = None
    guided_choice: list[str] | None = None
    guided_grammar: Pattern | None = None
    guided_whitespace_pattern: Annotated[str, Meta(max_length=256)] | None = None
    json_schema: str | dict[str, Any] | None = None
    """SGLang's and llama.cpp's."""
    regex: Pattern | None = None
    """SGLang's."""
    ebnf: Pattern | None = None
    """SGLang's: a grammar."""
    grammar: Pattern | None = None
    """llama.cpp's: a grammar in GBNF."""


def constraint_of(body: StructuredFields) -> StructuredOutputs | None:
    """Return what the answer must look like; None: anything. Raises InvalidRequest if two fields say it."""
    said: dict[str, StructuredOutputs] = {}
    if body.response_format is not None and (of_format := constraint_of_format(body.response_format)) is not None:
        said["response_format"] = of_format
    if (of_vllm := body.structured_outputs) is not None:
        said["structured_outputs"] = StructuredOutputs(
            json=of_vllm.json,  # type: ignore[arg-type]
            regex=of_vllm.regex,
            choice=of_vllm.choice,  # type: ignore[arg-type]
            grammar=of_vllm.grammar,
            json_object=bool(of_vllm.json_object),
            structural_tag=of_vllm.structural_tag,  # type: ignore[arg-type]
            whitespace_pattern="" if of_vllm.disable_any_whitespace else of_vllm.whitespace_pattern,
        )
    for name, field in _OTHER_NAMES.items():
        value = getattr(body, name)
        if value not in (None, "", {}):
            said[name] = StructuredOutputs(**{field: value, "whitespace_pattern": body.guided_whitespace_pattern})
    if len(said) > 1:
        raise InvalidRequest(f"{' and '.join(said)} both say what the answer must look like; give one", next(reversed(said)))
    return next(iter(said.values()), None)


def constraint_of_format(given: ResponseFormat) -> StructuredOutputs | None:
    """Return the constraint of a response format; None for plain text. Raises InvalidRequest."""
    if given.type == "text":
        return None
    if given.type == "json_object":
        return StructuredOutputs(json_object=True)
    if given.type == "json_schema":
        schema = None if given.json_schema is None else given.json_schema.schema
        if schema is None:
            raise InvalidRequest("response_format.json_schema.schema is missing; it is required", "response_format")
        return StructuredOutputs(json=schema)  # type: ignore[arg-type]
    if given.type == "structural_tag":
        tag = {"format": given.format} if given.format else {"structures": given.structures, "triggers": given.triggers}
        return StructuredOutputs(structural_tag=tag)  # type: ignore[arg-type]
    raise InvalidRequest(
        f"response_format.type is {given.type[:40]!r}; allowed: text, json_object, json_schema, structural_tag",
        "response_format",
    )


_OTHER_NAMES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
    "grammar": "grammar",
}
