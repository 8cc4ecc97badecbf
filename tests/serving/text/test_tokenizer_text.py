"""Tokenizer, detokeniser and chat template without transformers: borders, broken bytes, refusals."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import KINDS, byte_level, sentencepiece

from evenflow.base.errors import InvalidRequest, ModelError
from evenflow.serving.text import ChatTemplate, Tokenizer


@pytest.fixture(scope="module")
def tokenizers_by_kind(tmp_path_factory):
    found = {}
    for kind, make in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        make(folder)
        found[kind] = Tokenizer.from_folder(folder)
    return found


def stream(tokenizer, prompt, ids, skip=True):
    detokenizer = tokenizer.detokenizer(prompt, skip_special_tokens=skip)
    pieces = [detokenizer.add(i) for i in ids]
    return pieces, detokenizer.finish()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 420), max_size=20), st.booleans())
def test_byte_level_pieces_equal_the_whole_whatever_the_tokens(tokenizers_by_kind, ids, skip):
    tokenizer = tokenizers_by_kind["byte-level"]
    pieces, rest = stream(tokenizer, [5], ids, skip)
    assert "".join(pieces) + rest == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="�"), max_size=30), st.sampled_from(sorted(KINDS)))
def test_pieces_of_any_text_equal_the_text_and_never_hold_half_a_character(tokenizers_by_kind, text, kind):
    tokenizer = tokenizers_by_kind[kind]
    prompt = tokenizer.encode("the quick")
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces, rest = stream(tokenizer, prompt, ids)
    assert "�" not in "".join(pieces)
    before = tokenizer.decode(prompt)
    assert before + "".join(pieces) + rest == tokenizer.decode(prompt + ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 420), max_size=16))
def test_broken_bytes_never_break_the_stream(tokenizers_by_kind, ids):
    tokenizer = tokenizers_by_kind["sentencepiece"]
    pieces, rest = stream(tokenizer, [5], ids)
    text, whole = "".join(pieces) + rest, tokenizer.decode([5, *ids])[len(tokenizer.decode([5])) :]
    if "�" not in whole:
        assert text == whole


def test_a_character_of_four_tokens_appears_with_its_last(tokenizers_by_kind):
    for tokenizer in tokenizers_by_kind.values():
        ids = tokenizer.encode("a🎉", add_special_tokens=False)[-4:]
        pieces, rest = stream(tokenizer, tokenizer.encode("a"), ids)
        assert pieces == ["", "", "", "🎉"]
        assert rest == ""
        pieces, rest = stream(tokenizer, tokenizer.encode("a"), ids[:3])
        assert pieces == ["", "", ""]
        assert set(rest) == {"�"}


def test_the_first_word_keeps_its_space(tokenizers_by_kind):
    tokenizer = tokenizers_by_kind["sentencepiece"]
    ids = tokenizer.encode("fox", add_special_tokens=False)
    assert tokenizer.decode(ids) == "fox"
    pieces, _ = stream(tokenizer, tokenizer.encode("the quick brown"), ids)
    assert "".join(pieces) == " fox"


def test_tokens_as_text_and_bytes(tokenizers_by_kind):
    byte, piece = tokenizers_by_kind["byte-level"], tokenizers_by_kind["sentencepiece"]
    for tokenizer in (byte, piece):
        ids = tokenizer.encode("the quick 🎉", add_special_tokens=False)
        assert b"".join(tokenizer.token_bytes(i) for i in ids).decode().strip() == "the quick 🎉"
        assert tokenizer.token_bytes(10_000) == b""
    assert byte.token_text(byte.encode("é", add_special_tokens=False)[0]) == "�"
    assert byte.token_text(byte.token_id("<|end|>")) == "<|end|>"


def test_special_tokens_are_skipped_or_shown(tokenizers_by_kind):
    tokenizer = tokenizers_by_kind["byte-level"]
    ids = tokenizer.encode("a<|end|>b")
    assert "".join(stream(tokenizer, [], ids, skip=True)[0]) == "ab"
    assert "".join(stream(tokenizer, [], ids, skip=False)[0]) == "a<|end|>b"


def test_requests_that_are_no_text_are_refused(tokenizers_by_kind):
    tokenizer = tokenizers_by_kind["byte-level"]
    with pytest.raises(InvalidRequest, match="surrogate"):
        tokenizer.encode("a\ud800b")
    for ids in ([-1], [2**40]):
        with pytest.raises(InvalidRequest, match="vocabulary"):
            tokenizer.decode(ids)


def test_tokens_that_only_the_config_declares_are_added(tmp_path):
    byte_level(tmp_path)
    next_id = Tokenizer.from_folder(tmp_path).vocab_size
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(next_id): {"content": "<|tool|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("a<|tool|>")[-1] == next_id
    assert tokenizer.decode([next_id]) == ""
    config["added_tokens_decoder"] = {"9999": {"content": "<|far|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"no token 9999.*<\|far\|>"):
        Tokenizer.from_folder(tmp_path)


def test_folders_without_a_tokenizer_say_so(tmp_path):
    with pytest.raises(ModelError, match=r"holds no tokenizer\.json$"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"tokenizer\.model alone"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "refuses"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages | join(5, 6, 7, 8) }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{% set x = messages[0].__init__.__globals__ %}{{ x }}", "refuses"),
    ],
)
def test_what_a_template_refuses_is_the_requests_fault(source, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        ChatTemplate(source).render([{"role": "user", "content": "x"}])
    assert caught.value.param == "messages"


def test_conversations_and_templates_that_are_none(tmp_path):
    with pytest.raises(InvalidRequest, match="messages is empty"):
        ChatTemplate("x").render([])
    with pytest.raises(ModelError, match="does not compile"):
        ChatTemplate("{% if %}")
    sentencepiece(tmp_path)
    assert ChatTemplate.find(tmp_path) is None
    with pytest.raises(ModelError, match="has no chat template"):
        ChatTemplate.from_folder(tmp_path)
    for broken in ("[]", "{", '{"chat_template": 3}'):
        (tmp_path / "chat_template.json").write_text(broken)
        with pytest.raises(ModelError, match="chat"):
            ChatTemplate.from_folder(tmp_path)


def test_the_server_side_of_text_loads_no_torch():
    program = "import evenflow.serving.text, sys; assert not {'torch', 'transformers', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
