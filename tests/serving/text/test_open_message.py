"""A conversation whose last message stays open, against transformers' ``continue_final_message``."""

from __future__ import annotations

from typing import Any

import pytest
from text_tokenizers import sentencepiece

from evenflow.base.errors import InvalidRequest
from evenflow.serving.text import ChatTemplate
from evenflow.serving.text.open_message import mark_end

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMS = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}</s>{% endfor %}"
TWICE = "{{ messages[-1].content }}|{% for m in messages %}({{ m.content }}){% endfor %}"
LISTS = "{% for m in messages %}{% for part in m.content %}<{{ part.text }}>{% endfor %};{% endfor %}"
TEMPLATES = {"chatml": CHATML, "trims": TRIMS, "lists": LISTS}
ENDINGS = ["Well", "Well,", "Well, ", "Well\n\n", " Well ", "one. two", "It is 🎉"]


def turns(ending: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ending}]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("oracle")
    sentencepiece(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_ends_where_transformers_ends_it(oracle, name, ending):
    template = ChatTemplate(TEMPLATES[name])
    given = turns(ending)
    as_read: list[dict[str, Any]] = list(given)
    if template.content_format == "openai":
        as_read = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in given]
    expected = oracle.apply_chat_template(as_read, tokenize=False, continue_final_message=True, chat_template=TEMPLATES[name])
    assert template.render(given, continue_final_message=True) == expected
    assert given == turns(ending), "the caller's messages are left as they are"


def test_the_last_text_among_parts_stays_open():
    template = ChatTemplate(LISTS)
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two "}]
    assert template.render([{"role": "assistant", "content": parts}], continue_final_message=True) == "<one ><two "
    assert parts[1]["text"] == "two "


def test_a_text_that_holds_other_turns_texts_is_found_at_its_end():
    template = ChatTemplate(CHATML)
    messages = [{"role": "user", "content": "hi"}, *turns("hi")]
    assert template.render(messages, continue_final_message=True).endswith("<|im_start|>assistant\nhi")


def test_a_text_that_is_written_twice_has_no_mark_left():
    assert ChatTemplate(TWICE).render(turns("Well, "), continue_final_message=True) == "Well, |(hi)(Well, "
    shouting = ChatTemplate("{{ messages[-1].content | trim }}|{% for m in messages %}({{ m.content | trim }}){% endfor %}")
    assert shouting.render(turns("Well, "), continue_final_message=True) == "Well,|(hi)(Well,"


@pytest.mark.parametrize("content", [None, "", [], [{"type": "image", "url": "x"}]])
def test_a_message_without_text_cannot_be_continued(content):
    with pytest.raises(InvalidRequest, match="the last message has no text") as refused:
        mark_end({"role": "assistant", "content": content})
    assert refused.value.param == "continue_final_message"


def test_a_template_that_does_not_write_the_message_says_so():
    template = ChatTemplate("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    with pytest.raises(InvalidRequest, match="does not write the last message"):
        template.render(turns("Well"), continue_final_message=True)
