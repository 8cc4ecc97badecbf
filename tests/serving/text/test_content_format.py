"""Templates that loop over a message's content are given a list of parts; the others a text."""

from __future__ import annotations

import pytest

from evenflow.base.errors import ConfigError, InvalidRequest, ModelError
from evenflow.serving.text import ChatTemplate, read_chat_template

STRING = {
    "plain": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "attribute": "{% for m in messages %}{{ m.content | trim }}{% endfor %}",
    "other loops": "{% for m in messages %}{% for t in m.tool_calls %}{{ t }}{% endfor %}{{ m.content }}{% endfor %}",
    "tools": "{% for tool in tools %}{{ tool }}{% endfor %}{% for m in messages[1:] %}{{ m.content }}{% endfor %}",
    "macro": "{% macro show(items) %}{% for i in items %}{{ i }}{% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ show([1, 2]) }}{{ m.content }}{% endfor %}",
    "parameter of that name": "{% macro show(content) %}{% for i in content %}{{ i }}{% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ show([1]) }}{{ m.content }}{% endfor %}",
}
OPENAI = {
    "Llama Guard 3": "{% for m in messages %}{{ m.role }}: {% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}\n{% endfor %}",
    "guarded": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}",
    "alias of messages": "{% set rest = messages[1:] %}{% for m in rest %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
    "alias of content": "{% for m in messages %}{% set content = m.content %}"
    "{% for p in content %}{{ p.text }}{% endfor %}{% endfor %}",
    "alias of another name": "{% for m in messages %}{% set c = m['content'] %}"
    "{% for p in c %}{{ p.text }}{% endfor %}{% endfor %}",
    "filter": "{% for m in messages %}{% for p in m.content | list %}{{ p.text }}{% endfor %}{% endfor %}",
    "first message": "{% set first = messages[0] %}{% for p in first['content'] %}{{ p['text'] }}{% endfor %}",
    "macro": "{% macro show(items) %}{% for i in items %}{{ i.text }}{% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
    "macro by name": "{% macro show(x, items) %}{% for i in items %}{{ i.text }}{% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ show(1, items=m['content']) }}{% endfor %}",
}
TEXTS = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "one"}]},
    {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "three"}]},
]


@pytest.mark.parametrize("name", STRING)
def test_templates_that_print_the_content(name):
    template = ChatTemplate(STRING[name])
    assert template.content_format == "string"
    assert template.render(PARTS, tools=[]).endswith("two\nthree")


@pytest.mark.parametrize("name", OPENAI)
def test_templates_that_loop_over_the_content(name):
    template = ChatTemplate(OPENAI[name])
    assert template.content_format == "openai"
    shown = template.render(TEXTS)
    assert ("one" if name == "first message" else "two") in shown, "no message is lost"
    assert template.render([{"role": "user", "content": [{"type": "text", "text": "x"}]}] * 2).count("x") >= 1


def test_an_operator_may_say_otherwise():
    assert ChatTemplate(OPENAI["guarded"], content_format="string").render(TEXTS) == "onetwo"
    forced = ChatTemplate(STRING["plain"], content_format="openai").render(TEXTS[:1])
    assert forced == "[{'type': 'text', 'text': 'one'}]"
    with pytest.raises(ConfigError, match="allowed: auto, string, openai"):
        ChatTemplate("x", content_format="json")


def test_variables_with_reserved_names_are_the_requests_fault():
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{{ mood }}{% endfor %}", variables={"mood": "!"})
    for name in ("self", "messages"):
        with pytest.raises(InvalidRequest, match=f"chat_template_kwargs sets {name}"):
            template.render(TEXTS, **{name: 1})
    assert template.render(TEXTS) == "one!two!"
    assert template.render(TEXTS, mood="?") == "one?two?"
    assert template.render(TEXTS, **{"no name": 1, "class": 2}) == "one!two!"
    with pytest.raises(ConfigError, match="set messages"):
        ChatTemplate("x", variables={"messages": []})


def test_a_template_on_the_command_line(tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ 'é' }}", encoding="utf-8")
    assert read_chat_template(str(file)) == "{{ 'é' }}"
    assert read_chat_template(r"{{ messages }}\n") == "{{ messages }}\n"
    assert read_chat_template("{{ 'é' }}\\n") == "{{ 'é' }}\\n"
    with pytest.raises(ConfigError, match="no template, and no file that can be read"):
        read_chat_template(str(tmp_path / "none.jinja"))
    with pytest.raises(ModelError, match="does not compile"):
        ChatTemplate(read_chat_template("{% if %}"))
