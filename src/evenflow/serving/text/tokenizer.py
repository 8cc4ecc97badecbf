"""Text to token ids and back, through ``tokenizer.json``, as transformers does it. No torch.

Which special tokens a text gets is said by the post-processor of ``tokenizer.json`` alone; transformers 5
reads add_bos_token and add_eos_token of ``tokenizer_config.json`` no more than this file does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from evenflow.base.errors import InvalidRequest, ModelError
from evenflow.serving.text.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """One model's vocabulary. Safe to use from several threads."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self._backend = backend
        self.config = dict(config or {})
        """What ``tokenizer_config.json`` says."""
        self.special_tokens = dict(special_tokens or {})
        """Text of the named special tokens: bos_token, eos_token, ..."""
        self._special_ids = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        self._decoding = _decoding_of(backend)
        self._byte_of_char = _BYTE_OF_CHAR if self._decoding.is_byte_level else None
        self._bytes_by_id: dict[int, bytes] = {}

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Load ``tokenizer.json`` of a model folder. Raises ModelError if it cannot be used."""
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            others = [name for name in ("tokenizer.model", "tekken.json", "vocab.json") if (folder / name).is_file()]
            raise ModelError(f"{folder} holds no tokenizer.json{_remedy(folder, others[0]) if others else ''}")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(f"{file} cannot be read: {error}") from None
        backend.no_truncation()
        backend.no_padding()
        config = read_tokenizer_config(folder)
        _add_missing_tokens(backend, config, file)
        return cls(backend, special_tokens_of(config), config)

    def with_tokens(self, added: Sequence[tuple[int, str, bool]]) -> Tokenizer:
        """The same and further tokens (id, text, whether special). Raises ModelError if their ids do not follow."""
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        for token_id, text, is_special in added:
            backend.add_tokens([tokenizers.AddedToken(text, special=is_special, normalized=False)])
            if backend.token_to_id(text) != token_id:
                raise ModelError(f"its added token {text[:40]!r} is {token_id}; the next id is {backend.token_to_id(text)}")
        return Tokenizer(backend, self.special_tokens)

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def json_text(self) -> str:
        """The whole tokenizer as the text of a ``tokenizer.json``."""
        return self._backend.to_str()

    def token_id(self, text: str) -> int | None:
        """Id of the token written ``text``, or None."""
        return self._backend.token_to_id(text)

    def special_token_id(self, text: str) -> int | None:
        """Id of the special token written ``text``, or None."""
        found = self._backend.token_to_id(text)
        return found if found in self._special_ids else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``. Raises InvalidRequest for a text that is not valid Unicode."""
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError):
            raise InvalidRequest("the text holds half of a surrogate pair; allowed: valid Unicode", "prompt") from None

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a text that already has its special tokens, as a chat template renders it."""
        return self.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``token_ids``; ids that no token has are skipped."""
        try:
            return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError):
            raise InvalidRequest("a token id is outside the vocabulary", "tokens") from None

    def token_text(self, token_id: int) -> str:
        """One token as text, with its leading space; bytes that are no text of their own become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; none if no token has the id."""
        known = self._bytes_by_id.get(token_id)
        if known is None:
            known = self._bytes_by_id[token_id] = self._bytes_of(self._backend.id_to_token(token_id) or "")
        return known

    def detokenizer(self, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> Detokenizer:
        """Turns output tokens into text one by one, after this prompt."""
        skip = self._special_ids if skip_special_tokens else frozenset[int]()
        decoding = self._decoding
        if decoding.is_byte_level or decoding.has_byte_fallback:
            return ByteDetokenizer(
                self.token_bytes,
                skip,
                prompt_token_ids,
                replaces_each_byte=decoding.has_byte_fallback,
                num_stripped=decoding.num_stripped,
            )
        return WindowDetokenizer(lambda ids: self.decode(ids, skip_special_tokens=skip_special_tokens), prompt_token_ids)

    def _bytes_of(self, token: str) -> bytes:
        if self._byte_of_char is not None:
            try:
                return bytes(self._byte_of_char[c] for c in token)
            except KeyError:
                return token.encode("utf-8", "replace")
        match = _BYTE_TOKEN.fullmatch(token)
        if match:
            return bytes([int(match[1], 16)])
        return token.replace("▁", " ").encode("utf-8", "replace")


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """``tokenizer_config.json`` over ``special_tokens_map.json``; {} if there is neither. Raises ModelError."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from None
        if not isinstance(value, dict):
            raise ModelError(f"{file} holds no JSON object")
        config |= value
    return config


def special_tokens_of(config: dict[str, Any]) -> dict[str, str]:
    """Text of the named special tokens of a tokenizer config, those that it has."""
    found: dict[str, str] = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _add_missing_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any], file: Path) -> None:
    """Add tokens that tokenizer_config.json declares and tokenizer.json lacks, in the order of their ids."""
    declared = config.get("added_tokens_decoder") or {}
    for key in sorted(declared, key=int):
        entry = declared[key]
        if backend.token_to_id(entry["content"]) is not None:
            continue
        flags = {name: bool(entry.get(name, False)) for name in ("lstrip", "rstrip", "normalized", "single_word", "special")}
        backend.add_tokens([tokenizers.AddedToken(entry["content"], **flags)])
        if backend.token_to_id(entry["content"]) != int(key):
            raise ModelError(f"{file} has no token {key}, which tokenizer_config.json declares as {entry['content']!r}")


def _remedy(folder: Path, other: str) -> str:
    """How to get a tokenizer.json from what is there."""
    code = f"from transformers import AutoTokenizer as T; T.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    return f", and {other} alone is not read; make one, once: pip install transformers sentencepiece; python -c {code!r}"


@dataclass(frozen=True, slots=True)
class _Decoding:
    """How tokens become text, where that is a matter of bytes."""

    is_byte_level: bool = False
    """Every token is bytes, written in GPT-2's alphabet."""
    has_byte_fallback: bool = False
    """Tokens are text with a mark for spaces, and <0x0A> for bytes: SentencePiece's way."""
    num_stripped: int = 0
    """Spaces that are taken from the beginning of a text."""


def _decoding_of(backend: tokenizers.Tokenizer) -> _Decoding:
    if backend.decoder is None:
        return _Decoding()
    decoder = json.loads(backend.decoder.__getstate__())
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    if [part["type"] for part in parts] == ["ByteLevel"]:
        return _Decoding(is_byte_level=True)
    spaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    if parts[:3] != [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]:
        return _Decoding()
    if len(parts) == 3:
        return _Decoding(has_byte_fallback=True)
    strip = parts[3]
    if len(parts) == 4 and strip == {"type": "Strip", "content": " ", "start": strip.get("start"), "stop": 0}:
        return _Decoding(has_byte_fallback=True, num_stripped=strip["start"])
    return _Decoding()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 is itself, the rest follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF_CHAR = _byte_alphabet()

__all__ = ["Tokenizer", "read_tokenizer_config", "special_tokens_of"]
