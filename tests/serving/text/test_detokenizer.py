"""Tokens that are bytes of characters: completions that begin inside one, bytes that are no text, bounded work."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import byte_level, sentencepiece

from evenflow.serving.text import Tokenizer
from evenflow.serving.text.detokenizer import ByteDetokenizer, Utf8Stream, WindowDetokenizer

NO_TEXT = "�"


def other_vocabulary(folder):
    """SentencePiece's vocabulary under a decoder that is not known by its bytes."""
    sentencepiece(folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "ByteFallback"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(state))


KINDS = {"byte-level": byte_level, "sentencepiece": sentencepiece, "other": other_vocabulary}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found = {}
    for kind, make in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        make(folder)
        found[kind] = Tokenizer.from_folder(folder)
    return found


def written(tokenizer, prompt, ids):
    detokenizer = tokenizer.detokenizer(prompt)
    return "".join(detokenizer.add(i) for i in ids) + detokenizer.finish()


def byte_ids(tokenizer, data: bytes) -> list[int]:
    """One token for each byte."""
    by_bytes = {
        tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size)) if len(tokenizer.token_bytes(i)) == 1
    }
    fallback = {bytes([b]): tokenizer.token_id(f"<0x{b:02X}>") for b in range(256)}
    return [by_bytes[bytes([b])] if fallback[bytes([b])] is None else fallback[bytes([b])] for b in data]


def test_each_kind_has_its_way(made):
    ways = {kind: type(made[kind].detokenizer([])) for kind in KINDS}
    assert ways == {"byte-level": ByteDetokenizer, "sentencepiece": ByteDetokenizer, "other": WindowDetokenizer}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_completion_that_begins_inside_a_character_begins_with_it(made, kind, cut):
    tokenizer = made[kind]
    word = tokenizer.encode("the", add_special_tokens=False)
    character = byte_ids(tokenizer, "🎉".encode())
    after = byte_ids(tokenizer, b"!")
    assert written(tokenizer, [*word, *character[:cut]], [*character[cut:], *after]) == "🎉!"
    assert written(tokenizer, [*word, *character], after) == "!"
    assert written(tokenizer, [*word, *character[:cut]], []) in ("", NO_TEXT, NO_TEXT * cut), "at most what stands for it"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 419), max_size=24), st.integers(0, 24))
def test_sentencepiece_as_the_tokenizer_decodes(made, ids, cut):
    """All the text, wherever the prompt ends: as decoded at once, but for characters before bytes that are no text."""
    tokenizer = made["sentencepiece"]
    prompt, output = ids[:cut], ids[cut:]
    runs = re.findall(r"(?:<0x..>)+", "".join(tokenizer._backend.id_to_token(i) or "" for i in ids if i > 2))
    mixed = [run for run in runs if _is_mixed(bytes.fromhex(re.sub("<0x|>", "", run)))]
    whole = written(tokenizer, [], ids)
    if not mixed:
        assert whole == tokenizer.decode(ids)
        if written(tokenizer, prompt, []) == "" and not written(tokenizer, [], prompt).endswith(NO_TEXT):
            assert written(tokenizer, [], prompt) + written(tokenizer, prompt, output) == whole


def _is_mixed(data: bytes) -> bool:
    """True for bytes of which a part is text."""
    try:
        data.decode()
        return False
    except UnicodeDecodeError:
        return data.decode("utf-8", "ignore") != ""


@pytest.mark.parametrize(
    ("pieces", "each", "once"),
    [
        ([b"a\xff", b"b"], "a�b", "a�b"),
        ([b"\xe4\xbd", b"a"], "��a", "�a"),
        ([b"\xe4", b"\xbd", b"\xa0"], "你", "你"),
        ([b"\xf0\x9f", b"\x8e\xff"], "����", "��"),
        ([b"\xe4\xbd"], "��", "�"),
        ([b"\xc3\xc3\xa9"], "�é", "�é"),
        ([b"", b"x", b""], "x", "x"),
    ],
)
def test_bytes_to_text(pieces, each, once):
    for replaces_each_byte, text in ((True, each), (False, once)):
        stream = Utf8Stream(replaces_each_byte=replaces_each_byte)
        assert "".join(map(stream.feed, pieces)) + stream.finish() == text
    assert b"".join(pieces).decode("utf-8", "replace") == once


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=30), st.lists(st.integers(0, 30), max_size=6))
def test_bytes_to_text_however_they_are_cut(data, cuts):
    stream = Utf8Stream(replaces_each_byte=False)
    places = [0, *sorted(cuts), len(data)]
    text = "".join(stream.feed(data[a:b]) for a, b in itertools.pairwise(places))
    assert text + stream.finish() == data.decode("utf-8", "replace")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", ["bytes that are no text", "nothing at all"])
def test_the_work_for_a_token_does_not_grow(made, kind, content):
    tokenizer = made[kind]
    work = 0

    def counted(function, size):
        def call(argument):
            nonlocal work
            work += size(argument)
            return function(argument)

        return call

    detokenizer = tokenizer.detokenizer([5, 6, 7])
    if isinstance(detokenizer, WindowDetokenizer):
        detokenizer._decode = counted(detokenizer._decode, len)
    else:
        detokenizer._bytes_of = counted(detokenizer._bytes_of, lambda _: 1)
        detokenizer._stream.feed = counted(detokenizer._stream.feed, lambda data: len(data) + len(detokenizer._stream._waiting))
    token = byte_ids(tokenizer, b"\xf0")[0] if content == "bytes that are no text" else tokenizer.vocab_size + 5
    seen = []
    for _ in range(3000):
        before = work
        detokenizer.add(token)
        seen.append(work - before)
    assert max(seen) <= 64
    assert sum(seen[-1000:]) <= sum(seen[:1000]) * 1.1 + 10, "a late token costs what an early one does"


def test_the_space_at_the_beginning(made):
    tokenizer = made["sentencepiece"]
    ids = tokenizer.encode("fox", add_special_tokens=False)
    start = tokenizer.token_id("<s>")
    assert tokenizer.token_bytes(ids[0]).startswith(b" ")
    assert written(tokenizer, [start], ids) == tokenizer.decode([start, *ids]) == "fox"
    assert written(tokenizer, [], ids) == "fox"
    assert written(tokenizer, tokenizer.encode("the"), ids) == " fox"
