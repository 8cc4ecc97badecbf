"""Requests of an adapter with a template and tokens of its own are read and answered with these, where the operator says so."""

from __future__ import annotations

import asyncio
import json

from server_fakes import FakeEngine, in_process, make_adapter

from evenflow.demo.assets import model_path
from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig
from evenflow.serving.text import ChatTemplate, Tokenizer

TOKENIZER = Tokenizer.from_folder(model_path())
NEXT = TOKENIZER.vocab_size


def ask(tmp_path, rule, *requests):
    folder = make_adapter(tmp_path, "own")
    make_adapter(tmp_path, "plain")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<call>{{ m.content }}{% endfor %}")
    token = {"id": NEXT, "content": "<call>", "special": True}
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [token]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<call>"}))
    broken = make_adapter(tmp_path, "broken")
    (broken / "chat_template.jinja").write_text("{% for %}")

    async def run():
        engine = FakeEngine(max_model_len=4096)
        config = ServerConfig(adapter_dir=tmp_path, adapter_text=rule)
        app = create_app(engine, TOKENIZER, ChatTemplate.find(model_path()), config)
        async with in_process(app) as http:
            answers = [await http.post(path, json=body) for path, body in requests]
        return engine.submitted, answers

    return asyncio.run(run())


def chat(model):
    return "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def test_an_adapters_own_text_is_used_for_its_requests_alone(tmp_path):
    tokens = "/tokenize", {"model": "own", "prompt": "<call>", "add_special_tokens": False}
    submitted, answers = ask(tmp_path, "own", chat("own"), chat("plain"), chat("base"), tokens, chat("broken"))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 400]
    own, plain, base = submitted
    assert own.prompt_token_ids == [NEXT, *TOKENIZER.encode("hi", add_special_tokens=False)]
    assert own.added_tokens == [(NEXT, "<call>", True)]
    assert NEXT in own.sampling.stop_token_ids
    assert plain.prompt_token_ids == base.prompt_token_ids
    assert not plain.added_tokens
    assert answers[3].json()["tokens"] == [NEXT]
    assert "does not compile" in answers[4].text


def test_by_default_templates_of_adapters_are_not_run(tmp_path):
    submitted, answers = ask(tmp_path, "base", chat("own"), chat("base"), chat("broken"))
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len({tuple(submit.prompt_token_ids) for submit in submitted}) == 1
