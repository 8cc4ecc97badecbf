"""What vLLM's documents say of its own fields and routes, beside OpenAI's."""

from __future__ import annotations

from typing import Any

import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer
from test_server_statuses import CHAT, TEXT, error_of, post

from evenflow.serving.server.api import generation
from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well, "}]


def test_rules_for_tokens_reach_the_engine(live):
    engine = FakeEngine()
    app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(), {})
    fields = {"allowed_token_ids": [9, 7, 9], "bad_words": ["no", "nay"]}
    with LiveServer(app) as server:
        for path, body in (("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)):
            assert post(server, path, {**body, "model": "base", **fields}).status_code == 200
    for submit in engine.submitted:
        assert submit.sampling.allowed_token_ids == (7, 9)
        assert submit.sampling.bad_words == ("no", "nay")
        assert submit.sampling.bad_word_ids == (tuple(b"no"), tuple(b"nay"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [258]}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"bad_words": ["a"] * 129}, "bad_words"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 256}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "middle"}, "truncation_side"),
    ],
)
def test_wrong_values_are_named(live, fields, param):
    for path, body in (("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)):
        response = post(live, path, {**body, **fields})
        assert response.status_code == 400
        assert error_of(response)["param"] == param


def test_a_prompt_is_cut_from_the_left_or_the_right(live):
    def said(prompt: object, **fields: object) -> dict:
        body = {"model": "base", "prompt": prompt, "echo": True, "max_tokens": 6, **fields}
        return post(live, "/v1/completions", body).json()

    for prompt in ("abcdefgh", list(b"abcdefgh")):
        answer = said(prompt, truncate_prompt_tokens=3)
        assert answer["choices"][0]["text"] == "fgh[base]"
        assert answer["usage"]["prompt_tokens"] == 3
    assert said(list(b"abcdefgh"), truncate_prompt_tokens=3, truncation_side="right")["choices"][0]["text"] == "abc[base]"
    assert said("ab", truncate_prompt_tokens=9)["choices"][0]["text"] == "ab[base]"
    # The longest prompt that leaves room for the answer.
    longest = said("x" * 300, truncate_prompt_tokens=-1)
    assert longest["usage"]["prompt_tokens"] == 250
    chat = post(live, "/v1/chat/completions", {**CHAT, "truncate_prompt_tokens": 4}).json()
    assert chat["usage"]["prompt_tokens"] == 4
    assert chat["choices"][0]["message"]["content"] == "[base] ant>"


def test_tokens_may_be_named_by_their_ids(live):
    fields = {"max_tokens": 2, "logprobs": 1, "return_tokens_as_token_ids": True}
    [choice] = post(live, "/v1/completions", {**TEXT, **fields, "echo": True}).json()["choices"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in (256, *b"hi[b")]
    assert next(iter(choice["logprobs"]["top_logprobs"][-1])) == f"token_id:{ord('b')}"
    assert choice["logprobs"]["text_offset"] == [0, 5, 6, 7, 8]
    chat = post(live, "/v1/chat/completions", {**CHAT, **fields, "logprobs": True, "top_logprobs": 1}).json()
    first = chat["choices"][0]["logprobs"]["content"][0]
    assert (first["token"], first["bytes"]) == (f"token_id:{ord('[')}", [ord("[")])
    assert first["top_logprobs"][0]["token"].startswith("token_id:")


def test_more_log_probabilities_where_the_operator_allows_them():
    engine = FakeEngine()
    app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(max_logprobs=50), {})
    with LiveServer(app) as server:
        assert post(server, "/v1/completions", {**TEXT, "logprobs": 50, "prompt_logprobs": 40}).status_code == 200
        assert error_of(post(server, "/v1/completions", {**TEXT, "logprobs": 51}))["param"] == "logprobs"
        body = {**CHAT, "logprobs": True, "top_logprobs": 51}
        assert error_of(post(server, "/v1/chat/completions", body))["param"] == "top_logprobs"
        assert error_of(post(server, "/v1/completions", {**TEXT, "prompt_logprobs": 51}))["param"] == "prompt_logprobs"
    assert engine.submitted[0].sampling.logprobs == 50


def test_all_log_probabilities_where_the_operator_allows_them():
    for most, status in ((258, 200), (-1, 200), (257, 400)):
        engine = FakeEngine()
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(max_logprobs=most), {})
        with LiveServer(app) as server:
            chat = post(server, "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": -1, "max_tokens": 2})
            text = post(server, "/v1/completions", {**TEXT, "logprobs": -1, "prompt_logprobs": -1, "max_tokens": 2})
            assert (chat.status_code, text.status_code) == (status, status)
            if status == 200:
                assert [submit.sampling.logprobs for submit in engine.submitted] == [258, 258]
                assert engine.submitted[1].sampling.prompt_logprobs == 258
                assert len(chat.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 258
            else:
                assert error_of(chat)["param"] == "top_logprobs"
                assert "-1, all 258 tokens; allowed: 0 to 257" in error_of(text)["message"]
            below = post(server, "/v1/completions", {**TEXT, "logprobs": -2})
            assert (below.status_code, error_of(below)["param"]) == (400, "logprobs")


def test_one_answer_holds_only_so_many_log_probabilities(monkeypatch):
    monkeypatch.setattr(generation, "MOST_ANSWER_SCORES", 60)
    with LiveServer(create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(), {})) as server:
        fits = {**TEXT, "logprobs": 5, "max_tokens": 10}
        assert post(server, "/v1/completions", fits).status_code == 200
        for fields in ({"max_tokens": 11}, {"n": 2}, {"logprobs": 6}, {"prompt": ["a", "b"]}):
            refused = post(server, "/v1/completions", {**fits, **fields})
            assert (refused.status_code, error_of(refused)["param"]) == (400, "logprobs")
        chat = post(server, "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 0})
        assert error_of(chat)["param"] == "top_logprobs", "without max_tokens the whole room counts"


def test_a_server_may_name_tokens_by_their_ids():
    config = ServerConfig(names_tokens_by_id=True)
    with LiveServer(create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), config, {})) as server:

        def tokens(**fields: object) -> list[str]:
            body = {**TEXT, "logprobs": 1, "max_tokens": 2, **fields}
            return post(server, "/v1/completions", body).json()["choices"][0]["logprobs"]["tokens"]

        assert tokens() == tokens(return_tokens_as_token_ids=True) == [f"token_id:{token}" for token in b"[b"]
        assert tokens(return_tokens_as_token_ids=False) == ["[", "b"]
        chat = {**CHAT, "logprobs": True, "max_tokens": 2}
        said = post(server, "/v1/chat/completions", chat).json()["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in said] == [f"token_id:{token}" for token in b"[b"]
        assert '"token":"token_id:91"' in post(server, "/v1/chat/completions", {**chat, "stream": True}).text
        assert '"tokens":["token_id:91"]' in post(server, "/v1/completions", {**TEXT, "logprobs": 0, "stream": True}).text


class ThinkingTemplate(FakeTemplate):
    """Reads how much to think."""

    def reads(self, variable: str) -> bool:
        return variable in ("tools", "reasoning_effort", "enable_thinking")


def test_reasoning_effort_reaches_templates_that_read_it(live):
    app = create_app(FakeEngine(), FakeTokenizer(), ThinkingTemplate(), ServerConfig(), {})
    ask = {"model": "base", "max_tokens": 99}
    hi = [{"role": "user", "content": "hi"}]
    with LiveServer(app) as server:

        def seen(path: str, **fields: Any) -> str:
            said = post(server, path, {**ask, **fields}).json()
            if path == "/v1/messages":
                return said["content"][0]["text"]
            if path == "/v1/responses":
                return said["output"][0]["content"][0]["text"]
            return said["choices"][0]["message"]["content"]

        chat = "/v1/chat/completions"
        high = "<reasoning_effort=high><enable_thinking=True>"
        none = "<reasoning_effort=none><enable_thinking=False>"
        assert high in seen(chat, messages=hi, reasoning_effort="high")
        assert none in seen(chat, messages=hi, reasoning_effort="none")
        assert "_" not in seen(chat, messages=hi)
        given = seen(chat, messages=hi, reasoning_effort="low", chat_template_kwargs={"enable_thinking": False})
        assert "<enable_thinking=False><reasoning_effort=low>" in given
        ask = {"model": "base", "max_output_tokens": 99}
        assert high in seen("/v1/responses", input="hi", reasoning={"effort": "high", "summary": "auto"})
        ask = {"model": "base", "max_tokens": 99}
        assert none in seen("/v1/messages", messages=hi, thinking={"type": "disabled"})
        assert high in seen("/v1/messages", messages=hi, output_config={"effort": "high"})
        plain = post(server, "/v1/messages/count_tokens", {**ask, "messages": hi}).json()["input_tokens"]
        told = {**ask, "messages": hi, "thinking": {"type": "disabled"}}
        assert post(server, "/v1/messages/count_tokens", told).json()["input_tokens"] == plain + len(none)
    # A template that does not read it is told nothing, as with vLLM.
    answer = post(live, chat, {**CHAT, "reasoning_effort": "high", "max_tokens": 99})
    assert "high" not in answer.json()["choices"][0]["message"]["content"]
    refused = post(live, chat, {**CHAT, "reasoning_effort": "enormous"})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "reasoning_effort")


def test_the_last_message_may_be_continued(live):
    body = {"model": "base", "messages": TURNS, "max_tokens": 64}
    url = "/v1/chat/completions"

    def content(**fields: object) -> str:
        return post(live, url, {**body, **fields}).json()["choices"][0]["message"]["content"]

    assert content() == "[base] <user>hi<assistant>well, <assistant>"
    assert content(continue_final_message=True) == "[base] <user>hi<assistant>well, "
    assert content(continue_final_message=True, add_generation_prompt=False) == "[base] <user>hi<assistant>well, "
    assert content(add_generation_prompt=False) == "[base] <user>hi<assistant>well, "
    assert content(continue_final_message=True, echo=True).startswith("well, [base]")
    both = post(live, url, {**body, "continue_final_message": True, "add_generation_prompt": True})
    assert error_of(both)["param"] == "continue_final_message"
    tokens = post(live, "/tokenize", {"messages": TURNS, "continue_final_message": True}).json()["tokens"]
    assert bytes(tokens) == b"<user>hi<assistant>well, "


def test_an_echo_comes_first_in_a_stream(live):
    body = {"model": "base", "messages": TURNS, "stream": True, "echo": True, "continue_final_message": True}
    text = post(live, "/v1/chat/completions", body).text
    first = text.split("\n\n")[0]
    assert '"content":"well, ["' in first
    assert text.count("well, [") == 1


def test_anthropics_prefill_is_the_beginning_of_the_answer(live):
    body = {"model": "base", "messages": TURNS, "max_tokens": 64}
    answer = post(live, "/v1/messages", body).json()
    assert answer["content"][0]["text"] == "[base] <user>hi<assistant>well, "
    counted = post(live, "/v1/messages/count_tokens", {"model": "base", "messages": TURNS}).json()["input_tokens"]
    assert counted == len("<user>hi<assistant>well, ")


def test_roles_and_documents_that_the_template_knows(live):
    def chat(**fields: object) -> Any:
        return post(live, "/v1/chat/completions", {"model": "base", **fields})

    said = chat(messages=[{"role": "narrator", "content": "once"}]).json()
    assert said["choices"][0]["message"]["content"] == "[base] <narrator>once<assistant>"
    refused = error_of(chat(messages=[{"role": "chorus", "content": "oh"}]))
    assert (refused["param"], "template" in refused["message"]) == ("messages[0].role", True)
    assert "<documents=" in chat(**CHAT, documents=[{"title": "a", "text": "b"}]).json()["choices"][0]["message"]["content"]


def test_load_and_the_tokenizers_configuration(live):
    assert live.http.get("/load").json() == {"server_load": 0}
    assert live.http.get("/tokenizer_info").status_code == 404
    app = create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(has_tokenizer_info=True), {})
    with LiveServer(app) as server:
        info = server.http.get("/tokenizer_info").json()
    assert info == {"tokenizer_class": "FakeTokenizer", "bos_token": "<bos>", "chat_template": FakeTemplate.source}


def test_invocations_are_answered_by_what_they_hold(live):
    chat = post(live, "/invocations", {**CHAT, "max_tokens": 6}).json()
    assert (chat["object"], chat["choices"][0]["message"]["content"]) == ("chat.completion", "[base]")
    text = post(live, "/invocations", {**TEXT, "max_tokens": 6}).json()
    assert (text["object"], text["choices"][0]["text"]) == ("text_completion", "[base]")
    assert "[DONE]" in post(live, "/invocations", {**CHAT, "stream": True}).text
    named = live.http.post(
        "/invocations", json={**TEXT, "max_tokens": 3}, headers={"X-Amzn-SageMaker-Adapter-Identifier": "a"}
    ).json()
    assert (named["model"], named["choices"][0]["text"]) == ("a", "[a]")
    assert error_of(post(live, "/invocations", {"inputs": "hi"}))["param"] == "messages"
    assert post(live, "/invocations", [1]).status_code == 400


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling", "/v1/rerank", "/v1/score", "/v1/audio/speech", "/v1/batches"])
def test_what_is_not_served_says_why(live, path):
    response = post(live, path, {"model": "base", "input": "hi"})
    error = error_of(response)
    assert (response.status_code, error["code"]) == (404, "not_served")
    assert "this server" in error["message"]


def test_the_tokens_of_a_chat_with_tools_are_those_that_it_is_charged_for(live):
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    answer = post(live, "/v1/chat/completions", {**CHAT, "tools": tools, "max_tokens": 1}).json()
    counted = post(live, "/tokenize", {"messages": CHAT["messages"], "tools": tools}).json()
    assert "<tools=" in bytes(counted["tokens"]).decode()
    assert counted["count"] == answer["usage"]["prompt_tokens"]
