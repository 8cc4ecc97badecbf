"""A conversation to the text a model was trained to continue, through the model's own jinja template.

The template comes with the model and is not trusted: it runs in jinja's immutable sandbox, with the
functions that transformers gives templates (raise_exception, strftime_now, tojson, break and continue,
the generation tag) and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evenflow.base.errors import InvalidRequest, ModelError
from evenflow.serving.text.tokenizer import read_tokenizer_config, special_tokens_of


class ChatTemplate:
    """One compiled template. ``special_tokens``: variables like bos_token that the template may print."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """Raises ModelError for a template that does not compile."""
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template does not compile: {error}") from None
        self._special_tokens = dict(special_tokens or {})

    @classmethod
    def find(cls, path: str | Path) -> ChatTemplate | None:
        """The template of a model folder, None without one: chat_template.jinja, .json or tokenizer_config.json."""
        folder = Path(path)
        config = read_tokenizer_config(folder)
        source = _read_source(folder, config)
        return None if source is None else cls(source, special_tokens_of(config))

    @classmethod
    def from_folder(cls, path: str | Path) -> ChatTemplate:
        """The template of a model folder. Raises ModelError if it has none."""
        found = cls.find(path)
        if found is None:
            raise ModelError(f"{path} has no chat template (chat_template.jinja, chat_template.json or tokenizer_config.json)")
        return found

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt, special tokens included. ``variables`` are handed to the template.

        Raises InvalidRequest for messages that the template refuses.
        """
        if not messages:
            raise InvalidRequest("messages is empty; allowed: one message or more", "messages")
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        values = {"tools": None, "documents": None, **self._special_tokens, **variables}
        try:
            return self._template.render(messages=plain, add_generation_prompt=add_generation_prompt, **values)
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the chat template refuses the messages: {error}", "messages") from None
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise InvalidRequest(
                f"the chat template fails on the messages: {type(error).__name__}: {error}", "messages"
            ) from None


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant said for training; here it is plain text."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _read_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    try:
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        if (folder / "chat_template.json").is_file():
            return _default_of(json.loads((folder / "chat_template.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"the chat template of {folder} cannot be read: {error}") from None
    return _default_of(config.get("chat_template"))


def _default_of(value: Any) -> str | None:
    """A template, or the one called "default" of a list of named templates."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        by_name = {entry.get("name"): entry.get("template") for entry in value}
        template = by_name.get("default")
        return template if isinstance(template, str) else None
    raise ModelError(f"chat_template is {str(value)[:80]!r}; allowed: a text or a list of named templates")


__all__ = ["ChatTemplate"]
