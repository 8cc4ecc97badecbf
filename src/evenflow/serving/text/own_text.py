"""What an adapter's folder says of text: a chat template and tokens of its own, where they differ from the base model's.

Trainers save the whole tokenizer beside an adapter, as a rule the base model's. What is taken from it is what was added:
tokens whose ids follow the base model's, the end token and the template. The vocabulary itself is the base model's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenflow.base.errors import AdapterRejected, ModelError
from evenflow.serving.adapters.adapter_files import read_file
from evenflow.serving.text.chat_template import ChatTemplate
from evenflow.serving.text.tokenizer import Tokenizer, special_tokens_of

AddedToken = tuple[int, str, bool]
"""(id, text, whether it is special)"""

MOST_ADDED_TOKENS = 1024
_LONGEST_TOKEN = 256
_MAX_TEMPLATE_BYTES = 64 << 10
_MAX_CONFIG_BYTES = 1 << 20
_MAX_TOKENIZER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class OwnText:
    """The text side of one adapter."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    added_tokens: tuple[AddedToken, ...] = ()
    """Those that the base model's tokenizer lacks, in the order of their ids."""
    end_token_ids: tuple[int, ...] = ()
    """Its end token, if that is not the base model's."""


def read_own_text(
    folder: Path, tokenizer: Tokenizer, template: ChatTemplate | None, allowed: Sequence[Path] = ()
) -> OwnText | None:
    """What the adapter in ``folder`` has of its own beside ``tokenizer`` and ``template``; None if nothing.

    ``allowed``: folders beside its own where its files may lie. Raises AdapterRejected with every reason found.
    """
    reasons: list[str] = []
    config = _json(folder, "tokenizer_config.json", allowed, _MAX_CONFIG_BYTES, reasons)
    whole = _json(folder, "tokenizer.json", allowed, _MAX_TOKENIZER_BYTES, reasons)
    source = _template_source(folder, config, allowed, reasons)
    added = _added_tokens(config, whole, tokenizer, reasons)
    own_tokenizer = tokenizer
    if added and not reasons:
        try:
            own_tokenizer = tokenizer.with_tokens(added)
        except ModelError as error:
            reasons.append(str(error))
    own_template, special = template, special_tokens_of(dict(config))
    if source is not None and (template is None or source != template.source) and not reasons:
        try:
            own_template = ChatTemplate(source, {**tokenizer.special_tokens, **special})
        except ModelError as error:
            reasons.append(str(error))
    if reasons:
        raise AdapterRejected(str(folder), reasons)
    end = own_tokenizer.token_id(special.get("eos_token", ""))
    is_own_end = end is not None and special["eos_token"] != tokenizer.special_tokens.get("eos_token")
    if own_tokenizer is tokenizer and own_template is template and not is_own_end:
        return None
    return OwnText(own_tokenizer, own_template, tuple(added), (end,) if is_own_end and end is not None else ())


def _added_tokens(
    config: Mapping[str, Any], whole: Mapping[str, Any], tokenizer: Tokenizer, reasons: list[str]
) -> list[AddedToken]:
    declared = config.get("added_tokens_decoder")
    entries: list[Mapping[str, Any]] = []
    if isinstance(declared, Mapping):
        entries = [{"id": key, **entry} for key, entry in declared.items() if isinstance(entry, Mapping)]
    listed = whole.get("added_tokens")
    entries += [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    found: dict[int, AddedToken] = {}
    for entry in entries:
        try:
            token_id, text = int(entry["id"]), entry["content"]
        except (KeyError, TypeError, ValueError):
            reasons.append("its tokenizer files list an added token without id or content")
            return []
        if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_TOKEN or token_id < 0:
            reasons.append(f"its added token {token_id} is {str(text)[:40]!r}; allowed: 1 to {_LONGEST_TOKEN} characters")
        elif tokenizer.token_id(text) is None:
            found[token_id] = token_id, text, bool(entry.get("special", False))
        elif tokenizer.token_id(text) != token_id:
            reasons.append(f"its token {text[:40]!r} is {token_id}, the base model's is {tokenizer.token_id(text)}")
    if len(found) > MOST_ADDED_TOKENS:
        reasons.append(f"it adds {len(found)} tokens; allowed: {MOST_ADDED_TOKENS}")
    return [found[token_id] for token_id in sorted(found)]


def _template_source(folder: Path, config: Mapping[str, Any], allowed: Sequence[Path], reasons: list[str]) -> str | None:
    data = _bytes(folder, "chat_template.jinja", allowed, _MAX_TEMPLATE_BYTES, reasons)
    source: Any = config.get("chat_template")
    if data is not None:
        source = data.decode("utf-8", "replace")
    if isinstance(source, list):  # several, by name
        source = next((s.get("template") for s in source if isinstance(s, Mapping) and s.get("name") == "default"), None)
    if source is None:
        return None
    if not isinstance(source, str) or len(source) > _MAX_TEMPLATE_BYTES:
        reasons.append(f"its chat template is no text of at most {_MAX_TEMPLATE_BYTES} characters")
        return None
    return source


def _json(folder: Path, name: str, allowed: Sequence[Path], max_bytes: int, reasons: list[str]) -> Mapping[str, Any]:
    data = _bytes(folder, name, allowed, max_bytes, reasons)
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        reasons.append(f"{name} is no JSON")
        return {}
    if not isinstance(value, dict):
        reasons.append(f"{name} holds no JSON object")
        return {}
    return value


def _bytes(folder: Path, name: str, allowed: Sequence[Path], max_bytes: int, reasons: list[str]) -> bytes | None:
    try:
        return read_file(folder, name, allowed=allowed, max_bytes=max_bytes).data
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reasons.append(str(error) if isinstance(error, ValueError) else f"{name} cannot be read ({error.strerror})")
        return None


__all__ = ["AddedToken", "OwnText", "read_own_text"]
