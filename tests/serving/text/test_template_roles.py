"""Which roles a chat template knows, by the way its source is written."""

from __future__ import annotations

import pytest

from evenflow.serving.text import ChatTemplate

WRITES_ANY = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% endfor %}",
    "attribute": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    "filtered": "{% for m in messages %}[{{ m.role | upper }}]{{ m.content }}{% endfor %}",
    "copied": "{% for m in messages %}{% set who = m['role'] %}<{{ who }}>{{ m.content }}{% endfor %}",
    "llama 3": (
        "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] %}"
        "{{ content }}{% endfor %}"
    ),
    "chosen": "{% for m in messages %}{{ 'me' if m.role == 'assistant' else m.role }}: {{ m.content }}{% endfor %}",
}
NAMES = {
    "compared": (
        "{% for m in messages %}{% if m['role'] == 'user' %}U: {{ m['content'] }}{% elif m['role'] == 'narrator' %}"
        "N: {{ m['content'] }}{% else %}A: {{ m['content'] }}{% endif %}{% endfor %}"
    ),
    "in a list": (
        "{% for m in messages %}{% if m.role in ['user', 'narrator'] %}{{ m.content }}{% else %}({{ m.content }})"
        "{% endif %}{% endfor %}"
    ),
    "in the output": "{% for m in messages %}{{ 'N' if m.role == 'narrator' else 'U' }}{{ m.content }}{% endfor %}",
    "copied": (
        "{% for m in messages %}{% set who = m.role == 'narrator' %}{{ 'N' if who else 'U' }}{{ m.content }}{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", WRITES_ANY)
def test_templates_that_write_any_role(name):
    template = ChatTemplate(WRITES_ANY[name])
    assert template.knows_role("chorus")
    assert "chorus" in template.render([{"role": "chorus", "content": "oh"}]).lower(), "it is written, and so it was told right"


@pytest.mark.parametrize("name", NAMES)
def test_templates_that_name_their_roles(name):
    template = ChatTemplate(NAMES[name])
    assert template.knows_role("narrator")
    assert not template.knows_role("chorus")
    assert "chorus" not in template.render([{"role": "chorus", "content": "oh"}])


def test_a_template_without_roles_knows_none():
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert not template.knows_role("user")
