"""Tokenizer and chat templates against transformers' AutoTokenizer. The one text test that imports transformers."""

import json

import pytest
from text_tokenizers import KINDS, TEXT, sentencepiece

from evenflow.serving.text import ChatTemplate, Tokenizer

TEXTS = [TEXT, "", " ", "hello", " hello  world ", "a\n\nb\t", "🎉🎉 ünï", "<|start|>user</s> x", "x" * 300]

TEMPLATES = {
    "loops": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'skip' %}{% continue %}{% endif %}"
        "[{{ m.role | upper }}] {{ m.content | trim }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[ASSISTANT]{% endif %}"
    ),
    "whitespace": "  {%- for m in messages %}\n    {{ m['content'] }}\n  {% endfor %}\nend",
    "tojson": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }} {{ tools }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "none": "{{ messages[0].get('name', 'nobody') }}{{ messages[-1].tool_calls is defined }}",
}
MESSAGES = [
    {"role": "system", "content": "be <b>brief</b> & 'kind'"},
    {"role": "user", "content": "  hëllo \n"},
    {"role": "skip", "content": "?", "name": None},
    {"role": "assistant", "content": "hi", "tool_calls": None},
]


@pytest.fixture(scope="module")
def auto_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [{}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}])
def test_encode_and_decode_as_transformers(tmp_path, auto_tokenizer, kind, config):
    KINDS[kind](tmp_path, **config)
    ours, theirs = Tokenizer.from_folder(tmp_path), auto_tokenizer(tmp_path)
    assert ours.vocab_size == len(theirs)
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special)
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("where", ["tokenizer_config", "list", "jinja", "json"])
def test_templates_render_as_transformers(tmp_path, auto_tokenizer, template, where):
    source = TEMPLATES[template]
    sentencepiece(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if where == "list":
        config["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": source}]
    elif where == "tokenizer_config":
        config["chat_template"] = source
    elif where == "jinja":
        (tmp_path / "chat_template.jinja").write_text(source)
    else:
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": source}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = auto_tokenizer(tmp_path), ChatTemplate.from_folder(tmp_path)
    for prompt in (True, False):
        expected = theirs.apply_chat_template(
            MESSAGES, tokenize=False, add_generation_prompt=prompt, flag="on", chat_template=source if where == "json" else None
        )
        assert ours.render(MESSAGES, add_generation_prompt=prompt, flag="on") == expected
    ids = theirs.apply_chat_template(MESSAGES, flag="on", chat_template=source if where == "json" else None)["input_ids"]
    rendered = ours.render(MESSAGES, add_generation_prompt=False, flag="on")
    assert Tokenizer.from_folder(tmp_path).encode_rendered(rendered) == ids
