"""``tokenizer.json`` from the metadata of a GGUF file, as the model's own folder would have it. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from evenflow.base.errors import ModelError
from evenflow.serving.models.stored.gguf_file import GGUFFile

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
"""Kinds of tokens in GGUF, beside 1 (ordinary) and 6 (a byte)."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _by_digits() -> pre_tokenizers.PreTokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


_PRE_TOKENIZERS = {
    "default": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": _by_digits,
    "qwen2": lambda: _split(_WORDS % r"\p{N}"),
    "deepseek-r1-qwen": lambda: _split(_WORDS % r"\p{N}"),
    "llama-bpe": lambda: _split(_WORDS % r"\p{N}{1,3}"),
    "llama3": lambda: _split(_WORDS % r"\p{N}{1,3}"),
    "tekken": lambda: _split(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""How a text is cut before its pieces are merged, by ``tokenizer.ggml.pre``; the patterns are those of the models' folders."""

_IGNORES_MERGES = ("llama-bpe", "llama3", "tekken")
"""Where a piece that is a token stays whole, whatever the merges say."""


def tokenizer_json(file: GGUFFile) -> str:
    """The text of a ``tokenizer.json``. Raises ModelError for a kind of tokenizer that is not known here."""
    kind = file.value("tokenizer.ggml.model", str)
    tokens: list[str] = file.value("tokenizer.ggml.tokens", list)
    kinds: list[int] = file.value("tokenizer.ggml.token_type", list, [1] * len(tokens))
    if kind == "gpt2":
        tokenizer = _byte_level(file, tokens)
    elif kind == "llama":
        tokenizer = _sentence_piece(file, tokens)
    else:
        raise ModelError(f"{file.path}: tokenizer.ggml.model is {kind!r}; supported: gpt2, llama")
    special = [t for t, k in zip(tokens, kinds) if k == _CONTROL or (k == _UNKNOWN and kind == "llama")]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, kinds) if k == _USER_DEFINED])
    _add_ends(tokenizer, file, tokens, default_bos=kind == "llama")
    return tokenizer.to_str(pretty=False)


def special_tokens(file: GGUFFile) -> Mapping[str, str]:
    """bos_token, eos_token, ... as tokenizer_config.json names them."""
    tokens: Sequence[str] = file.value("tokenizer.ggml.tokens", list)
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = file.value(f"tokenizer.ggml.{key}_token_id", int, None)
        if token is not None and 0 <= token < len(tokens):
            found[f"{name}_token"] = tokens[token]
    return found


def _byte_level(file: GGUFFile, tokens: list[str]) -> Tokenizer:
    pre = file.value("tokenizer.ggml.pre", str, "default")
    if pre not in _PRE_TOKENIZERS:
        raise ModelError(f"{file.path}: tokenizer.ggml.pre is {pre!r}; supported: {', '.join(_PRE_TOKENIZERS)}")
    merges = [_merge(line) for line in file.value("tokenizer.ggml.merges", list)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _IGNORES_MERGES))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merge(line: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    if not right:
        raise ModelError(f"the GGUF file has a merge {line!r}; expected two pieces with a space between them")
    return left, right


def _sentence_piece(file: GGUFFile, tokens: list[str]) -> Tokenizer:
    scores: list[float] = file.value("tokenizer.ggml.scores", list)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    ranked = []
    for token, i in vocabulary.items():
        pairs = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in vocabulary and token[cut:] in vocabulary
        ]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        ranked += [(-scores[i], pair) for pair in pairs]
    ranked.sort(key=lambda entry: entry[0])
    unknown = tokens[file.value("tokenizer.ggml.unknown_token_id", int, 0)]
    merges = [pair for _, pair in ranked]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    adds_space = file.value("tokenizer.ggml.add_space_prefix", bool, True)
    steps = [normalizers.Prepend("▁")] if adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(content=" ", left=1)] if adds_space else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer


def _add_ends(tokenizer: Tokenizer, file: GGUFFile, tokens: list[str], *, default_bos: bool) -> None:
    """What is put before and behind a text that has no special tokens yet."""
    single: list[Any] = ["$A"]
    named = []
    for key, default in (("bos", default_bos), ("eos", False)):
        token = file.value(f"tokenizer.ggml.{key}_token_id", int, None)
        if token is not None and file.value(f"tokenizer.ggml.add_{key}_token", bool, default):
            single = [tokens[token], *single] if key == "bos" else [*single, tokens[token]]
            named.append((tokens[token], token))
    if named:
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=named)


__all__ = ["special_tokens", "tokenizer_json"]
