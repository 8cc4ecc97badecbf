"""An adapter's own chat template and tokens: taken where they differ from the base model's, refused where they cannot be."""

import json

import pytest

from evenflow.base.errors import AdapterRejected
from evenflow.demo.assets import model_path
from evenflow.serving.text import ChatTemplate, Tokenizer
from evenflow.serving.text.own_text import read_own_text

TOKENIZER = Tokenizer.from_folder(model_path())
TEMPLATE = ChatTemplate.find(model_path())
NEXT = TOKENIZER.vocab_size


def write(folder, **files):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def read(folder):
    return read_own_text(folder, TOKENIZER, TEMPLATE)


def added(token_id, text, special=True):
    return {"id": token_id, "content": text, "special": special, "normalized": False}


def test_the_base_models_own_files_are_nothing_of_its_own(tmp_path):
    assert read(tmp_path) is None
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (model_path() / name).exists():
            (tmp_path / name).write_bytes((model_path() / name).read_bytes())
    assert read(tmp_path) is None


def test_tokens_follow_the_base_models_and_are_read_and_written(tmp_path):
    write(tmp_path, tokenizer_config__json={"added_tokens_decoder": {str(NEXT): added(NEXT, "<call>")}, "eos_token": "<end>"})
    write(tmp_path, tokenizer__json={"added_tokens": [added(NEXT, "<call>"), added(NEXT + 1, "<end>")]})
    own = read(tmp_path)
    assert own.added_tokens == ((NEXT, "<call>", True), (NEXT + 1, "<end>", True))
    assert own.end_token_ids == (NEXT + 1,)
    ids = own.tokenizer.encode("hello<call>", add_special_tokens=False)
    assert ids[-1] == NEXT
    assert own.tokenizer.decode(ids, skip_special_tokens=False) == "hello<call>"
    assert NEXT not in TOKENIZER.encode("hello<call>", add_special_tokens=False), "the base model's tokenizer was changed"


def test_a_template_of_its_own_is_used(tmp_path):
    write(tmp_path, chat_template__jinja="{% for m in messages %}[{{ m.content }}]{% endfor %}")
    own = read(tmp_path)
    assert own.template.render([{"role": "user", "content": "hi"}]) == "[hi]"
    assert own.tokenizer is TOKENIZER


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"chat_template__jinja": "{% for %}"}, "does not compile"),
        ({"chat_template__jinja": "x" * 70000}, "allowed: 65536"),
        ({"tokenizer_config__json": {"chat_template": 7}}, "is no text"),
        ({"tokenizer_config__json": "{"}, "is no JSON"),
        ({"tokenizer_config__json": "[]"}, "holds no JSON object"),
        ({"tokenizer__json": {"added_tokens": [{"content": "x"}]}}, "without id or content"),
        ({"tokenizer__json": {"added_tokens": [added(NEXT + 5, "<x>")]}}, f"the next id is {NEXT}"),
        ({"tokenizer__json": {"added_tokens": [added(NEXT, "x" * 300)]}}, "allowed: 1 to 256"),
        ({"tokenizer__json": {"added_tokens": [added(NEXT + i, f"<{i}>") for i in range(1025)]}}, "allowed: 1024"),
        ({"tokenizer__json": {"added_tokens": [added(7, TOKENIZER.decode([65]))]}}, "the base model's is"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(tmp_path, files, reason):
    with pytest.raises(AdapterRejected) as caught:
        read(write(tmp_path, **files))
    assert any(reason in told for told in caught.value.reasons), caught.value.reasons


def test_links_that_lead_out_of_the_folder_are_refused(tmp_path):
    (tmp_path / "secret").write_text("{{ 1 }}")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterRejected, match="leads out of"):
        read(tmp_path / "adapter")
