"""What clients in the field send and expect, beside what the documents of the API say."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import zlib

import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, in_process, make_adapter
from test_server_statuses import CHAT, JSON, TEXT, ask, error_of, post

from evenflow.access.keys import hash_key
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.app import build_app, create_app
from evenflow.serving.server.run import drain
from evenflow.serving.server.server_config import ServerConfig


def test_echo_alone_scores_the_prompt_and_says_nothing(live):
    answer = post(live, "/v1/completions", {**TEXT, "echo": True, "max_tokens": 0, "logprobs": 1}).json()
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hi", "length")
    assert len(choice["logprobs"]["tokens"]) == 3
    assert answer["usage"]["completion_tokens"] == 0
    for body in ({"max_tokens": 0}, {"max_tokens": 0, "echo": False}):
        assert "echo" in error_of(post(live, "/v1/completions", {**TEXT, **body}))["message"]


def test_whole_numbers_and_truths_by_other_names(live):
    assert (
        post(live, "/v1/completions", {**TEXT, "max_tokens": 2.0, "n": 1.0, "echo": 1}).json()["usage"]["completion_tokens"]
        == 2
    )
    for body in ({"max_tokens": 2.5}, {"max_tokens": "2"}, {"max_tokens": 1e300}, {"echo": 2}):
        assert post(live, "/v1/completions", {**TEXT, **body}).status_code == 400
    answer = post(live, "/v1/chat/completions", {**CHAT, "logprobs": 0, "max_tokens": 3.0}).json()
    assert answer["choices"][0]["logprobs"] is None


def test_logprobs_0_tell_the_chosen_token(live):
    [choice] = post(live, "/v1/completions", {**TEXT, "logprobs": 0, "max_tokens": 2}).json()["choices"]
    assert [list(top.values()) for top in choice["logprobs"]["top_logprobs"]] == [[-0.5], [-0.5]]
    answer = post(live, "/v1/chat/completions", {**CHAT, "logprobs": True, "max_tokens": 1}).json()
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    assert logprobs["content"][0]["top_logprobs"] == []


def test_without_a_model_it_is_the_base_model(live):
    answer = post(live, "/v1/completions", {"prompt": "hi"}).json()
    assert (answer["model"], answer["choices"][0]["text"]) == ("base", "[base] hi")


def test_sglangs_way_to_name_an_adapter(live):
    for body in ({"lora_path": "a"}, {"model": "base", "lora_path": "a"}, {"model": "a", "lora_path": "a"}):
        assert post(live, "/v1/completions", {"prompt": "hi", **body}).json()["choices"][0]["text"] == "[a] hi"
    refused = post(live, "/v1/completions", {"prompt": "hi", "model": "b", "lora_path": "a"})
    assert error_of(refused)["param"] == "lora_path"
    assert post(live, "/v1/completions", {"prompt": "hi", "lora_path": "nobody"}).status_code == 404


@pytest.mark.parametrize(
    "field", ["lora", "regex", "ebnf", "grammar", "json_schema", "stop_regex", "options", "n_probs", "knob"]
)
def test_what_other_servers_would_answer_otherwise_is_refused(live, field):
    assert error_of(post(live, "/v1/chat/completions", {**CHAT, field: [{"id": 0, "scale": 1.0}]}))["param"] == field


def test_too_long_prompts_are_told_in_the_words_that_clients_look_for(live):
    for path, body in (
        ("/v1/completions", {**TEXT, "prompt": "x" * 300}),
        ("/v1/completions", {**TEXT, "prompt": "x" * 10_000_000}),
    ):
        error = error_of(post(live, path, body))
        assert error["message"].startswith("This model's maximum context length is 256 tokens. However, ")
        assert "prompt is too long" in error["message"]
        assert error["code"] == "context_length_exceeded"


def test_packed_bodies_and_byte_order_marks(live):
    plain = json.dumps({**TEXT, "max_tokens": 3}).encode()
    for encoding, packed in (("gzip", gzip.compress(plain)), ("deflate", zlib.compress(plain)), ("identity", plain)):
        answer = live.http.post("/v1/completions", content=packed, headers={**JSON, "content-encoding": encoding})
        assert answer.json()["usage"]["completion_tokens"] == 3
    assert post(live, "/v1/completions", b"\xef\xbb\xbf" + plain).status_code == 200
    refused = live.http.post("/v1/completions", content=plain, headers={**JSON, "content-encoding": "br"})
    assert refused.status_code == 415


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_only_json_is_json(live, kind):
    headers = {} if kind is None else {"content-type": kind}
    for path in ("/v1/completions", "/v1/load_lora_adapter", "/adapters", "/tokenize"):
        answer = live.http.post(path, content=b"{}", headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")
    good = live.http.post(
        "/v1/completions", content=b'{"prompt": "hi"}', headers={"content-type": "application/json; charset=utf-8"}
    )
    assert good.status_code == 200


def test_probes_answer_head(live):
    for path in ("/health", "/ping", "/ready", "/metrics", "/version"):
        answer = live.http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_usage_in_every_chunk(live):
    body = {**TEXT, "stream": True, "max_tokens": 3, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for path, request in (("/v1/completions", body), ("/v1/chat/completions", {**body, "prompt": None, **CHAT})):
        request = {key: value for key, value in request.items() if value is not None}
        lines = [line for line in post(live, path, request).text.splitlines() if line.startswith("data: {")]
        counts = [json.loads(line[6:])["usage"]["completion_tokens"] for line in lines]
        assert counts == [1, 2, 3, 3]


def test_prompt_tokens_in_chat_streams(live):
    answer = post(live, "/v1/chat/completions", {**CHAT, "stream": True, "return_token_ids": True, "max_tokens": 2})
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [list(b"<user>hi<assistant>"), None]


def test_tools_that_may_not_be_called_are_not_offered(live):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert post(live, "/v1/chat/completions", {**CHAT, "tools": [tool], "tool_choice": "none"}).status_code == 200


def test_null_where_vllm_writes_null(live):
    whole = post(live, "/v1/chat/completions", CHAT).json()
    assert {"service_tier", "system_fingerprint", "prompt_logprobs", "prompt_token_ids", "kv_transfer_params"} <= whole.keys()
    [choice] = whole["choices"]
    assert choice["stop_reason"] is choice["token_ids"] is choice["logprobs"] is None
    assert choice["message"]["refusal"] is choice["message"]["function_call"] is choice["message"]["audio"] is None
    [choice] = post(live, "/v1/completions", TEXT).json()["choices"]
    assert choice["stop_reason"] is choice["token_ids"] is choice["prompt_logprobs"] is choice["prompt_token_ids"] is None


def test_tokenize_of_a_model_that_nobody_serves_is_404(live):
    for path, body in (("/tokenize", {"prompt": "hi"}), ("/detokenize", {"tokens": [104]})):
        assert post(live, path, {**body, "model": "nobody"}).status_code == 404
        for model in ("base", "alias", "a", "base:b"):
            assert post(live, path, {**body, "model": model}).status_code == 200


@pytest.mark.parametrize("name", ["Rechtschreibung für Ärzte", "客服 v2", "مساعد", "a (copy)", "x&y=1", "team/support", "🙂"])
def test_adapters_in_any_script(tmp_path, name):
    path = make_adapter(tmp_path, "folder")

    async def main() -> None:
        app = create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig())
        async with in_process(app) as client:
            loaded = await client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)})
            assert loaded.status_code == 200, loaded.text
            answer = (await client.post("/v1/completions", json={"model": name, "prompt": "hi", "max_tokens": 50})).json()
            assert answer["choices"][0]["text"] == f"[{name}] hi"
            assert (await client.get(f"/v1/models/{name.replace('&', '%26')}")).json()["id"] == name
            assert (await client.get("/metrics")).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize(
    "name", ["", " a", "a ", "a\n", "a\x1b[2J", "../a", "a/../b", "/a", ".hidden", "a\\b", "x" * 256, "\u200e"]
)
def test_names_that_no_adapter_may_have(live, tmp_path, name):
    answer = post(live, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(make_adapter(tmp_path, "x"))})
    assert answer.status_code == 400


def test_headers_in_utf8_name_clients():
    async def main() -> None:
        engine = FakeEngine()
        app = create_app(
            engine, FakeTokenizer(), FakeTemplate(), ServerConfig(client_headers=("X-User-Id", "x-evenflow-client"))
        )
        async with in_process(app) as client:
            await client.post(
                "/v1/completions", json=TEXT, headers={"x-user-id": "Łukasz".encode(), "x-evenflow-client": b"eve"}
            )
            assert engine.submitted[-1].client_id == "Łukasz"

    asyncio.run(main())


def test_template_variables_that_cannot_be(live):
    for kwargs in (
        {"self": 1},
        {"messages": []},
        {"not a name": 1},
        {"class": 1},
        {f"v{i}": 1 for i in range(65)},
        {"v": "x" * 70_000},
    ):
        answer = post(live, "/v1/chat/completions", {**CHAT, "chat_template_kwargs": kwargs})
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "chat_template_kwargs"
    assert "<mood=calm>" in post(live, "/v1/chat/completions", {**CHAT, "chat_template_kwargs": {"mood": "calm"}}).text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", "x" * 257),
        ("stop", ["x" * 257]),
        ("stop_token_ids", [1] * 1025),
        ("logit_bias", {f"{i:010d}": 1 for i in range(1025)}),
        ("logit_bias", {"7": 1, "07": 1}),
        ("messages", [{"role": "user", "content": "x"}] * 16_385),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "x"}] * 4097}]),
        ("user", "x" * 1025),
    ],
)
def test_every_list_and_text_has_a_largest_length(live, field, value):
    error = error_of(post(live, "/v1/chat/completions", {**CHAT, field: value}))
    assert error["param"].startswith(field)


def test_log_probabilities_of_prompts_are_bounded():
    body = {"prompt": "x" * 3000, "prompt_logprobs": 20, "n": 8, "max_tokens": 1}
    answer = ask("/v1/completions", body, engine=lambda engine: setattr(engine, "max_model_len", 8192))
    assert "allowed: 262144" in error_of(answer)["message"]


def test_refused_requests_do_not_use_up_the_minute(tmp_path):
    (tmp_path / "clients.toml").write_text(
        f'[clients.alice]\nrequests_per_minute = 2\ntokens_per_minute = 60\napi_keys = ["{hash_key("k")}"]\n'
    )

    async def main() -> None:
        app = create_app(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(clients_file=tmp_path / "clients.toml"))
        async with in_process(app) as client:
            client.headers["authorization"] = "Bearer k"
            for body in ({"prompt": "x" * 300}, {"prompt": "x" * 100}, {"prompt": [999]}, {"prompt": []}):
                assert (await client.post("/v1/completions", json=body)).status_code in (400, 429)
            answers = [await client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 2}) for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200, 200, 429]
            app.state.server.limits.check_integrity()

    asyncio.run(main())


def test_prefixes_are_the_clients_own_where_keys_are_needed(tmp_path):
    (tmp_path / "clients.toml").write_text(
        f'[clients.a]\napi_keys = ["{hash_key("ka")}"]\n[clients.b]\napi_keys = ["{hash_key("kb")}"]\n'
    )

    def salts(**config) -> list[str]:
        async def main() -> list[str]:
            engine = FakeEngine()
            app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(**config))
            async with in_process(app) as client:
                for key in ("ka", "kb", "ka"):
                    headers = {"authorization": f"Bearer {key}"}
                    await client.post("/v1/completions", json=TEXT, headers=headers)
                await client.post("/v1/completions", json={**TEXT, "cache_salt": "s"}, headers={"authorization": "Bearer ka"})
            return [submit.cache_salt for submit in engine.submitted]

        return asyncio.run(main())

    a, b, again, salted = salts(clients_file=tmp_path / "clients.toml")
    assert a == again
    assert len({a, b, salted}) == 3
    assert salts(clients_file=tmp_path / "clients.toml", prefix_sharing="all") == ["", "", "", "s"]
    assert salts() == ["", "", "", "s"]


def test_what_a_drain_cuts_off_is_503(caplog):
    class Server:
        should_exit = False

    async def main() -> None:
        engine = FakeEngine()
        engine.gate.clear()
        state = ServerState(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(drain_timeout_s=0.05))
        async with in_process(build_app(state, {})) as client:
            waiting = [asyncio.create_task(client.post("/v1/completions", json={**TEXT, "stream": s})) for s in (False, True)]
            while len(engine.submitted) < 2:
                await asyncio.sleep(0)
            await drain(state, Server())
            answers = [await task for task in waiting]
            assert [answer.status_code for answer in answers] == [503, 503]
            assert all(error_of(answer)["code"] == "server_is_overloaded" for answer in answers)
            assert len(engine.aborted) == 2
            assert state.num_in_flight == 0

    asyncio.run(main())


def test_a_reload_that_has_lost_all_keys_is_refused(tmp_path, caplog):
    path = tmp_path / "clients.toml"
    path.write_text(f'[clients.alice]\napi_keys = ["{hash_key("k")}"]\n')

    async def main() -> None:
        state = ServerState(FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(clients_file=path))
        for text in ("", "[clients.alice]\nweight = 2\n"):
            path.write_text(text)
            await state.reload_clients()
            assert state.directory.holder({"authorization": "Bearer k"}) is not None
            assert "lost all its keys" in caplog.text
            caplog.clear()
        path.write_text(f'[clients.bob]\napi_keys = ["{hash_key("k2")}"]\n')
        await state.reload_clients()
        assert list(state.directory.clients) == ["bob"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("config", "warns"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "127.0.0.1"}, False),
        ({"host": "0.0.0.0", "api_keys": ("k",)}, False),
    ],
)
def test_an_open_server_that_others_can_reach_says_so_loudly(config, warns, caplog):
    with caplog.at_level(logging.WARNING):
        asyncio.run(_make(ServerConfig(**config)))
    assert ("OPEN TO EVERYBODY" in caplog.text) is warns


async def _make(config: ServerConfig) -> None:
    ServerState(FakeEngine(), FakeTokenizer(), FakeTemplate(), config)


LOAD = {"lora_name": "x", "lora_path": "/nowhere"}


@pytest.mark.parametrize(
    ("headers", "config", "is_taken"),
    [
        ({}, {}, True),
        ({"origin": "https://evil.example"}, {}, False),
        ({"origin": "null"}, {}, False),
        ({"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"}, {}, True),
        ({"origin": "http://localhost:8000", "host": "localhost:8000"}, {}, True),
        ({"origin": "http://rebound.example:8000", "host": "rebound.example:8000"}, {}, False),
        ({"origin": "http://127.0.0.1:9000", "host": "127.0.0.1:8000"}, {}, False),
        ({"origin": "https://api.example", "host": "api.example"}, {"host": "0.0.0.0"}, True),
        ({"origin": "https://chat.example"}, {"allowed_origins": ("https://chat.example",)}, True),
        ({"origin": "https://evil.example"}, {"allowed_origins": ("https://chat.example",)}, False),
        ({"origin": "https://evil.example"}, {"allowed_origins": ("*",)}, True),
    ],
)
def test_which_web_pages_may_call(headers, config, is_taken):
    for path, body in (("/v1/load_lora_adapter", LOAD), ("/v1/completions", TEXT)):
        answer = ask(path, body, headers=headers, **config)
        assert (answer.status_code != 403) is is_taken, answer.text
    assert ask("/v1/adapters/x", method="DELETE", headers=headers, **config).status_code == (404 if is_taken else 403)


def test_cross_origin_answers_are_off_unless_asked_for():
    headers = {"origin": "https://chat.example"}
    assert "access-control-allow-origin" not in ask("/v1/models", method="GET", headers=headers).headers
    config = {"allowed_origins": ("https://chat.example",)}
    answer = ask("/v1/completions", TEXT, headers=headers, **config)
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    asked = {**headers, "access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    assert ask("/v1/completions", method="OPTIONS", headers=asked, **config).status_code == 200
    asked["origin"] = "https://evil.example"
    assert "access-control-allow-origin" not in ask("/v1/completions", method="OPTIONS", headers=asked, **config).headers


def test_the_page_of_the_api_needs_nothing_from_elsewhere(live):
    page = live.http.get("/docs")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for text in (page.text, live.http.get("/docs/api_page.js").text, live.http.get("/docs/api_page.css").text):
        assert "http://" not in text
        assert "https://" not in text
    assert live.http.get("/docs/other").status_code == 404
