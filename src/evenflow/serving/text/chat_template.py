"""A conversation to the text a model was trained to continue, through the model's own jinja template.

The template comes with the model and is not trusted: it runs in jinja's immutable sandbox, with the
functions that transformers gives templates (raise_exception, strftime_now, tojson, break and continue,
the generation tag) and nothing else.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evenflow.base.errors import ConfigError, InvalidRequest, ModelError
from evenflow.serving.text.content_format import CONTENT_FORMATS, content_format_of
from evenflow.serving.text.open_message import cut_at_mark, mark_end
from evenflow.serving.text.template_roles import roles_of
from evenflow.serving.text.tokenizer import read_tokenizer_config, special_tokens_of

RESERVED_VARIABLES = frozenset({"self", "messages", "add_generation_prompt", "tools", "documents"})
"""Names that a request's own variables may not have: jinja's own, and those that have another place."""


class ChatTemplate:
    """One compiled template.

    ``special_tokens``: variables like bos_token that the template may print. ``content_format``: what it is given as a
    message's content, "string", "openai" (a list of parts) or "auto", what its source shows that it reads.
    ``variables``: for the template, where a request does not set them.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        content_format: str = "auto",
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ModelError for a template that does not compile, ConfigError for a variable with a reserved name."""
        self.source = source
        """The template itself."""
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            tree = environment.parse(source)
            detected = content_format_of(tree)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(f"the chat template does not compile: {error}") from None
        if content_format not in CONTENT_FORMATS:
            raise ConfigError(f"content_format is {content_format!r}; allowed: {', '.join(CONTENT_FORMATS)}")
        reserved = sorted(RESERVED_VARIABLES & (variables or {}).keys())
        if reserved:
            raise ConfigError(f"variables of the chat template set {', '.join(reserved)}, which have another place")
        self.content_format: str = detected if content_format == "auto" else content_format
        """string or openai."""
        self._roles = roles_of(tree)
        self._variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
        self._defaults = {"tools": None, "documents": None, **(special_tokens or {}), **(variables or {})}

    @classmethod
    def find(
        cls,
        path: str | Path,
        source: str | None = None,
        *,
        content_format: str = "auto",
        variables: Mapping[str, Any] | None = None,
    ) -> ChatTemplate | None:
        """The template of a model folder, None without one: chat_template.jinja, .json or tokenizer_config.json.

        ``source``: the template to use instead, with the folder's special tokens.
        """
        folder = Path(path)
        config = read_tokenizer_config(folder)
        source = _read_source(folder, config) if source is None else source
        if source is None:
            return None
        return cls(source, special_tokens_of(config), content_format=content_format, variables=variables)

    @classmethod
    def from_folder(cls, path: str | Path) -> ChatTemplate:
        """The template of a model folder. Raises ModelError if it has none."""
        found = cls.find(path)
        if found is None:
            raise ModelError(f"{path} has no chat template (chat_template.jinja, chat_template.json or tokenizer_config.json)")
        return found

    def knows_role(self, role: str) -> bool:
        """True if the template names ``role``, or writes whatever role a message has."""
        return self._roles.writes_any or role in self._roles.named

    def reads(self, variable: str) -> bool:
        """True if the template reads the variable ``variable``."""
        return variable in self._variables

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt, special tokens included. ``variables`` are handed to the template.

        A message's content is a text or a list of parts ``{"type": "text", "text": ...}``; the template gets the form that
        it reads. With ``continue_final_message`` the prompt ends with the last message's text, as in transformers, and
        ``add_generation_prompt`` means nothing. Raises InvalidRequest for messages that the template refuses, and for a
        variable with a reserved name.
        """
        if not messages:
            raise InvalidRequest("messages is empty; allowed: one message or more", "messages")
        reserved = sorted((RESERVED_VARIABLES - {"tools", "documents"}) & variables.keys())
        if reserved:
            raise InvalidRequest(f"chat_template_kwargs sets {reserved[0]}, which has another place", "chat_template_kwargs")
        plain = [self._plain(message) for message in messages]
        if continue_final_message:
            mark_end(plain[-1])
        adds_prompt = add_generation_prompt and not continue_final_message
        values = {**self._defaults, **variables, "messages": plain, "add_generation_prompt": adds_prompt}
        try:
            text = self._template.render(values)
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the chat template refuses the messages: {error}", "messages") from None
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise InvalidRequest(
                f"the chat template fails on the messages: {type(error).__name__}: {error}", "messages"
            ) from None
        return cut_at_mark(text) if continue_final_message else text

    def _plain(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message without what is None, its content in the form that the template reads."""
        plain = {key: value for key, value in message.items() if value is not None}
        content = plain.get("content")
        if self.content_format == "openai" and isinstance(content, str):
            plain["content"] = [{"type": "text", "text": content}]
        elif self.content_format == "string" and isinstance(content, list):
            plain["content"] = "\n".join(part["text"] for part in content if part.get("type") == "text")
        return plain


def read_chat_template(given: str) -> str:
    """Return the source of a template that is given as the path of a file, or as the template itself.

    As in vLLM, escapes like \\n of a template on the command line are read. Raises ConfigError for neither.
    """
    if not any(mark in given for mark in "{\n"):
        file = Path(given).expanduser()
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"chat_template is {given!r}, which is no template, and no file that can be read: {error}"
            ) from None
    return codecs.decode(given, "unicode_escape") if given.isascii() else given


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


__all__ = ["RESERVED_VARIABLES", "ChatTemplate", "read_chat_template"]
