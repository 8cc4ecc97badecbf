"""Every status code, with OpenAI's error body and the headers that go with it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, LiveServer, in_process, make_adapter

from evenflow.access.keys import hash_key
from evenflow.serving.client.messages import RequestOutput
from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig

CHAT = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "base", "prompt": "hi"}
JSON = {"content-type": "application/json"}


def post(live: LiveServer, path: str, body: Any) -> Any:
    """One request to the server that all tests share. Bodies: JSON, or raw bytes."""
    content = {"content": body, "headers": JSON} if isinstance(body, bytes) else {"json": body}
    return live.http.post(path, **content)


def ask(path: str, body: Any = None, *, method: str = "POST", headers: Any = None, engine: Any = None, **config: Any) -> Any:
    """One request to a fresh server; ``engine`` changes the fake engine first. Bodies: JSON, or raw bytes."""

    async def main() -> Any:
        fake = FakeEngine()
        if engine is not None:
            engine(fake)
        app = create_app(fake, FakeTokenizer(), FakeTemplate(), ServerConfig(**config))
        async with in_process(app) as client:
            content = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
            sent = {**JSON, **(headers or {})} if isinstance(body, bytes) else headers
            return await client.request(method, path, headers=sent, **content)

    return asyncio.run(main())


def error_of(response: Any) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("path", "fields", "param", "says"),
    [
        ("chat", {"messages": None}, "messages", "expected array, got null"),
        ("chat", {"messages": []}, "messages", ">= 1"),
        ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "allowed: system, developer, user"),
        ("chat", {"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        ("chat", {"messages": [{"content": "x"}]}, "messages[0].role", "required"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "text"),
        ("chat", {"messages": [{"role": "assistant", "content": "x"}]}, "messages", "conversation starts with the user"),
        ("chat", {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls", "assistant"),
        ("chat", {"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "sets tools"),
        ("chat", {"top_logprobs": 3}, "top_logprobs", "logprobs true"),
        ("chat", {"logprobs": 3}, "logprobs", "got int"),
        ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
        ("chat", {"n": 0}, "n", ">= 1"),
        ("chat", {"n": 129}, "n", "<= 128"),
        ("chat", {"temperature": "hot"}, "temperature", "expected float | null, got str"),
        ("chat", {"temperature": -0.1}, "temperature", ">= 0"),
        ("chat", {"top_p": 0}, "top_p", "> 0"),
        ("chat", {"max_tokens": 0}, "max_tokens", ">= 1"),
        ("chat", {"max_tokens": 1.5}, "max_tokens", "int"),
        ("chat", {"seed": 1 << 64}, "seed", "int"),
        ("chat", {"stop": ["a", ""]}, "stop", "none of them empty"),
        ("chat", {"stop": ["a"] * 17}, "stop", "at most 16"),
        ("chat", {"min_tokens": 9, "max_tokens": 3}, "min_tokens", "at most max_tokens"),
        ("chat", {"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ("chat", {"logit_bias": {"999": 1}}, "logit_bias", "0 to 257"),
        ("chat", {"logit_bias": {"9": 101}}, "logit_bias[...]", "<= 100"),
        ("chat", {"stop_token_ids": [258]}, "stop_token_ids", "0 to 257"),
        ("chat", {"stream_options": {"include_usage": True}}, "stream_options", "stream true"),
        ("chat", {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "without stream"),
        ("chat", {"model": 3}, "model", "expected str"),
        ("chat", {"user": "a\nb"}, "user", "printable"),
        ("chat", {"user": "x" * 300}, "user", "256"),
        ("text", {"prompt": []}, "prompt", "empty"),
        ("text", {"prompt": [[]]}, "prompt", "empty"),
        ("text", {"prompt": [1, "a"]}, "prompt", "mixes"),
        ("text", {"prompt": [258]}, "prompt", "0 to 257"),
        ("text", {"prompt": [-1]}, "prompt", "0 to 257"),
        ("text", {"prompt": {}}, "prompt", "got object"),
        ("text", {"logprobs": 21}, "logprobs", "0 to 20"),
        ("text", {"prompt": ["x"] * 600, "n": 2}, "prompt", "1024"),
    ],
)
def test_wrong_fields_are_400_and_named(live, path, fields, param, says):
    url, body = ("/v1/chat/completions", CHAT) if path == "chat" else ("/v1/completions", TEXT)
    response = post(live, url, {**body, **fields})
    assert response.status_code == 400
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param.split("[")[0] in error["message"] or says == "conversation starts with the user"
    assert says in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "x"),
        ("best_of", 2),
        ("priority", 1),
        ("service_tier", "flex"),
        ("chat_template", "{{ x }}"),
        ("use_beam_search", True),
        ("store", True),
        ("priority", False),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(live, field, value):
    for url, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
        response = post(live, url, {**body, field: value})
        assert response.status_code == 400
        assert error_of(response)["param"] == field
        assert f"{field} is not implemented" in error_of(response)["message"]


def test_harmless_values_pass_and_unknown_fields_are_refused_or_named(live):
    harmless = {
        "tools": None,
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "suffix": "",
        "best_of": 1,
        "priority": 0,
        "service_tier": "auto",
        "length_penalty": 1.0,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "n": None,
        "temperature": None,
    }
    response = post(live, "/v1/chat/completions", {**CHAT, **harmless})
    assert response.status_code == 200
    assert "x-evenflow-ignored-fields" not in response.headers
    for name in ("knob", "a\r\nb", "ü", "x" * 5000):
        response = post(live, "/v1/chat/completions", {**CHAT, name: 1})
        assert response.status_code == 400
        assert "is not a field that this server knows" in error_of(response)["message"]
        assert post(live, "/v1/chat/completions", {**CHAT, name: None}).status_code == 200, "null asks for nothing"
    body = {**CHAT, "knob": 1, "button": "low", "a\r\nb": 1, "ü": 2}
    response = ask("/v1/chat/completions", body, unknown_fields="ignore")
    assert response.status_code == 200
    assert response.headers["x-evenflow-ignored-fields"] == "button, knob, and 2 more"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": "base", "prompt": "\xed\xa0\x80"}', b"[" * 100_000]
)
def test_what_is_not_a_json_object_is_400(live, body):
    response = post(live, "/v1/completions", body)
    assert response.status_code == 400
    assert "body" in error_of(response)["message"]


def test_deep_nesting_is_400(live):
    deep = b"[" * 100_000 + b"]" * 100_000
    response = post(live, "/v1/completions", b'{"model": "base", "prompt": "x", "metadata": ' + deep + b"}")
    assert response.status_code == 400
    assert "deep" in error_of(response)["message"]


def test_a_body_that_is_too_large_is_413():
    response = ask("/v1/completions", {"model": "base", "prompt": "x" * 2000}, max_body_bytes=1000)
    assert response.status_code == 413
    assert "1000 bytes" in error_of(response)["message"]


@pytest.mark.parametrize("body", [{"prompt": "x" * 300}, {"prompt": "x" * 250, "max_tokens": 50}, {"prompt": "x" * 10_000_000}])
def test_what_is_too_long_is_400(live, body):
    response = post(live, "/v1/completions", {**TEXT, **body})
    assert response.status_code == 400
    assert error_of(response)["code"] == "context_length_exceeded"
    assert error_of(response)["param"] == "prompt"
    assert "256" in error_of(response)["message"]


def test_unknown_model_is_404_and_so_is_an_unknown_path(live):
    response = post(live, "/v1/completions", {**TEXT, "model": "nobody"})
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"
    assert error_of(post(live, "/v1/nothing", {}))["message"].startswith("there is no POST /v1/nothing")
    assert post(live, "/v1/nothing", {}).status_code == 404
    assert live.http.get("/v1/completions").status_code == 405


def test_keys_401_403_and_the_order_of_checks(tmp_path):
    (tmp_path / "clients.toml").write_text(
        f'[admin]\napi_keys = ["{hash_key("root")}"]\n[clients.alice]\napi_keys = ["{hash_key("k1")}"]\nadapters = ["a"]\n'
    )
    folder = tmp_path / "adapters"
    for name in "ab":
        make_adapter(folder, name, name)
    config = {"clients_file": tmp_path / "clients.toml", "adapter_dir": folder}
    right = {"authorization": "Bearer k1"}
    for headers in ({}, {"authorization": "Bearer"}, {"authorization": "Basic k1"}):
        response = ask("/v1/completions", b"not json", headers=headers, **config)
        assert response.status_code == 401
        assert "no API key" in error_of(response)["message"]
        assert response.headers["www-authenticate"] == "Bearer"
    response = ask("/v1/completions", TEXT, headers={"authorization": "Bearer k2"}, **config)
    assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
    assert "k2" not in response.text, "a key is never echoed"
    assert ask("/v1/completions", TEXT, headers=right, **config).status_code == 200
    assert ask("/v1/completions", TEXT, headers={"authorization": "bearer   k1 "}, **config).status_code == 200
    assert ask("/v1/completions", {**TEXT, "model": "a"}, headers=right, **config).status_code == 200
    there, nowhere = (ask("/v1/completions", {**TEXT, "model": name}, headers=right, **config) for name in "bc")
    assert (there.status_code, nowhere.status_code) == (404, 404)
    assert there.text.replace("'b'", "'c'") == nowhere.text, "nobody learns which adapters others have"
    for path in ("/v1/models", "/v1/adapters"):
        assert ask(path, method="GET", **config).status_code == 401
    assert ask("/v1/adapters", method="GET", headers=right, **config).status_code == 403
    assert ask("/v1/adapters", method="GET", headers={"authorization": "Bearer root"}, **config).status_code == 200
    for path in ("/tokenize", "/detokenize"):
        assert ask(path, {}, **config).status_code == 401
    for path in ("/health", "/ready", "/metrics", "/version", "/openapi.json"):
        assert ask(path, method="GET", **config).status_code == 200


def test_over_the_own_limit_is_429(tmp_path):
    (tmp_path / "clients.toml").write_text("[clients.alice]\nrequests_per_minute = 2\ntokens_per_minute = 1000\n")

    async def main() -> None:
        app = create_app(
            FakeEngine(), FakeTokenizer(), FakeTemplate(), ServerConfig(clients_file=tmp_path / "clients.toml", is_open=True)
        )
        async with in_process(app) as client:
            alice = {"x-evenflow-client": "alice"}
            first = await client.post("/v1/completions", json=TEXT, headers=alice)
            assert first.headers["x-ratelimit-limit-requests"] == "2"
            assert first.headers["x-ratelimit-remaining-requests"] == "1"
            used = first.json()["usage"]["total_tokens"]
            assert first.headers["x-ratelimit-remaining-tokens"] == str(1000 - used)
            assert first.headers["x-ratelimit-reset-requests"].startswith(("59", "60", "1m0s"))
            await client.post("/v1/completions", json=TEXT, headers=alice)
            refused = await client.post("/v1/completions", json={**TEXT, "stream": True}, headers=alice)
            assert refused.status_code == 429
            assert error_of(refused)["code"] == "rate_limit_exceeded"
            assert 50 <= int(refused.headers["retry-after"]) <= 60
            assert 50_000 <= int(refused.headers["retry-after-ms"]) <= 60_000
            other = await client.post("/v1/completions", json=TEXT)
            assert other.status_code == 200
            assert "x-ratelimit-limit-requests" not in other.headers

    asyncio.run(main())


def test_a_request_that_can_never_fit_is_429_without_a_retry(tmp_path):
    (tmp_path / "clients.toml").write_text("[clients.alice]\ntokens_per_minute = 10\n")
    response = ask(
        "/v1/completions",
        {**TEXT, "prompt": "x" * 50, "user": "alice"},
        clients_file=tmp_path / "clients.toml",
        is_open=True,
    )
    assert response.status_code == 429
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers


def test_a_full_server_is_503():
    async def main() -> None:
        engine = FakeEngine()
        engine.gate.clear()
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(max_queue=3))
        async with in_process(app) as client:
            waiting = [asyncio.create_task(client.post("/v1/completions", json=TEXT)) for _ in range(3)]
            while len(engine.submitted) < 3:
                await asyncio.sleep(0)
            refused = await client.post("/v1/completions", json=TEXT)
            assert refused.status_code == 503
            assert error_of(refused)["code"] == "server_is_overloaded"
            assert int(refused.headers["retry-after"]) >= 1
            assert int(refused.headers["retry-after-ms"]) >= 1
            engine.gate.set()
            assert [(await task).status_code for task in waiting] == [200, 200, 200]
            assert (await client.post("/v1/completions", json=TEXT)).status_code == 200
            app.state.server.limits.check_integrity()
            assert app.state.server.limits.num_waiting == 0

    asyncio.run(main())


def test_503_before_the_engine_is_warm_and_after_it_is_dead():
    async def main() -> None:
        engine = FakeEngine(is_warm=False)
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig())
        async with in_process(app) as client:
            assert (await client.get("/ping")).status_code == 200
            assert (await client.get("/health")).status_code == 503, "charts take it for readiness"
            assert (await client.get("/ready")).status_code == 503
            assert "warming up" in error_of(await client.post("/v1/completions", json=TEXT))["message"]
            assert (await client.get("/v1/models")).status_code == 503
            assert (await client.get("/metrics")).status_code == 200
            engine.warm.set()
            while not app.state.server.is_open:
                await asyncio.sleep(0)
            assert (await client.get("/ready")).status_code == 200
            assert (await client.post("/v1/completions", json=TEXT)).status_code == 200
            engine.gate.clear()
            running = asyncio.create_task(client.post("/v1/completions", json=TEXT))
            while len(engine.submitted) < 2:
                await asyncio.sleep(0)
            engine.die()
            assert (await running).status_code == 503
            assert (await client.get("/health")).status_code == 503
            assert (await client.get("/ready")).status_code == 503
            dead = await client.post("/v1/completions", json=TEXT)
            assert (dead.status_code, error_of(dead)["code"]) == (503, "engine_dead")

    asyncio.run(main())


def test_an_adapter_that_is_being_repaired_is_worth_another_try():
    def fail(engine: FakeEngine) -> None:
        engine.fail_with = RequestOutput("", error_type="AdapterDamaged", error="its rows are damaged")

    response = ask("/v1/completions", TEXT, engine=fail)
    assert response.status_code == 503
    assert error_of(response)["code"] == "adapter_damaged"
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("error_type", "status"),
    [
        ("AdapterNotFound", 404),
        ("PromptTooLong", 400),
        ("InvalidRequest", 400),
        ("ClientOverLimit", 429),
        ("ServerFull", 503),
        ("AdapterRejected", 400),
        ("AdapterError", 400),
        ("EvenFlowError", 500),
        ("NoSuchError", 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_has_its_status_streamed_or_not(error_type, status, stream):
    def fail(engine: FakeEngine) -> None:
        engine.fail_with = RequestOutput("", error_type=error_type, error="because", param="prompt", retry_after_s=2.5)

    response = ask("/v1/completions", {**TEXT, "stream": stream, "n": 2}, engine=fail)
    assert response.status_code == status
    assert "because" in error_of(response)["message"]
    if status in (429, 503):
        assert response.headers["retry-after-ms"] == "2500"
        assert response.headers["retry-after"] == "3"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_given_up_is_503_with_the_predicted_wait(stream):
    def fail(engine: FakeEngine) -> None:
        engine.fail_with = RequestOutput(
            "", error_type="SLOUnreachable", error="too late", retry_after_s=2.5, predicted_ttft_s=7.25
        )

    response = ask("/v1/chat/completions", {**CHAT, "stream": stream, "slo_ttft": 5.0}, engine=fail)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"] == {
        "message": "too late",
        "type": "server_error",
        "param": None,
        "code": "slo_unreachable",
        "predicted_ttft_s": 7.25,
    }


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        ({}, {}, None),
        ({"slo_ttft": 2}, {}, 2.0),
        ({"slo_ttft": None}, {}, None),
        ({}, {"x-llm-d-slo-ttft-ms": "1500"}, 1.5),
        ({"slo_ttft": 2.5}, {"x-llm-d-slo-ttft-ms": "nonsense"}, 2.5),
    ],
)
@pytest.mark.parametrize(("path", "base"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
def test_the_objective_for_the_first_token_reaches_the_engine(path, base, body, headers, expected):
    engines: list[FakeEngine] = []
    assert ask(path, {**base, **body}, headers=headers, engine=engines.append).status_code == 200
    assert [submit.slo_ttft_s for submit in engines[0].submitted] == [expected]


@pytest.mark.parametrize(
    ("body", "headers", "param"),
    [
        ({"slo_ttft": 0}, {}, "slo_ttft"),
        ({"slo_ttft": -1.5}, {}, "slo_ttft"),
        ({"slo_ttft": 3601}, {}, "slo_ttft"),
        ({"slo_ttft": "2"}, {}, "slo_ttft"),
        ({}, {"x-llm-d-slo-ttft-ms": "soon"}, "x-llm-d-slo-ttft-ms"),
        ({}, {"x-llm-d-slo-ttft-ms": "nan"}, "x-llm-d-slo-ttft-ms"),
        ({}, {"x-llm-d-slo-ttft-ms": "0"}, "x-llm-d-slo-ttft-ms"),
        ({}, {"x-llm-d-slo-ttft-ms": "1e99"}, "x-llm-d-slo-ttft-ms"),
    ],
)
def test_an_objective_that_is_none_is_refused(body, headers, param):
    response = ask("/v1/completions", {**TEXT, **body}, headers=headers)
    assert (response.status_code, error_of(response)["param"]) == (400, param)


def test_an_error_inside_the_server_is_500_and_tells_nothing(tmp_path):
    def break_it(engine: FakeEngine) -> None:
        engine.answer = lambda submit: str(1 / 0)

    response = ask("/v1/completions", TEXT, engine=break_it, headers={"x-request-id": "mine-1"})
    assert response.status_code == 500
    assert "division" not in response.text
    assert error_of(response)["type"] == "server_error"
    assert response.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_3", True), ("x" * 129, False), ("a b", False), ("a;b", False)])
def test_request_ids(given, kept):
    for path, body in (("/v1/completions", TEXT), ("/v1/completions", b"{"), ("/nothing", TEXT)):
        response = ask(path, body, headers={"x-request-id": given})
        assert (response.headers["x-request-id"] == given) is kept
        assert response.headers["x-request-id"]


def test_who_the_client_is_without_keys():
    async def main() -> None:
        engine = FakeEngine()
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig())
        async with in_process(app) as client:
            names = {"user": "u", "safety_identifier": "s"}
            for headers, body, expected in (
                ({"x-evenflow-client": "e", "x-llm-d-inference-fairness-id": "l"}, names, "e"),
                ({"x-llm-d-inference-fairness-id": "l", "x-gateway-inference-fairness-id": "g"}, names, "l"),
                ({"x-gateway-inference-fairness-id": "g"}, names, "g"),
                ({}, names, "s"),
                ({}, {"user": "u"}, "u"),
                ({}, {}, "anonymous"),
            ):
                await client.post("/v1/completions", json={**TEXT, **body}, headers=headers)
                assert engine.submitted[-1].client_id == expected
            response = await client.post("/v1/completions", json=TEXT, headers={"x-evenflow-client": "n" * 300})
            assert response.status_code == 400
            assert error_of(response)["param"] == "x-evenflow-client"

    asyncio.run(main())


def test_with_keys_nothing_but_the_key_says_who_the_client_is(tmp_path):
    (tmp_path / "clients.toml").write_text(
        f'[clients.alice]\nweight = 2.5\napi_keys = ["{hash_key("k1")}"]\n[clients.bob]\nweight = 9\n'
    )

    async def main() -> None:
        engine = FakeEngine()
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(clients_file=tmp_path / "clients.toml"))
        async with in_process(app) as client:
            headers = {
                "authorization": "Bearer k1",
                "x-evenflow-client": "bob",
                "x-llm-d-inference-fairness-id": "bob",
                "x-gateway-inference-fairness-id": "bob",
            }
            body = {**TEXT, "user": "bob", "safety_identifier": "bob", "metadata": {"client": "bob"}}
            await client.post("/v1/completions", json=body, headers=headers)
            assert engine.submitted[-1].client_id == "alice"
            assert engine.weights == {"alice": 2.5, "bob": 9.0}

    asyncio.run(main())


def test_tokenize_and_detokenize(live):
    answer = post(live, "/tokenize", {"prompt": "hi", "return_token_strs": True}).json()
    assert answer == {"count": 3, "max_model_len": 256, "tokens": [256, 104, 105], "token_strs": ["<bos>", "h", "i"]}
    assert post(live, "/tokenize", {"prompt": "hi", "add_special_tokens": False}).json()["tokens"] == [104, 105]
    messages = [{"role": "user", "content": "x"}]
    assert post(live, "/tokenize", {"messages": messages}).json()["count"] == len("<user>x<assistant>")
    assert post(live, "/tokenize", {"messages": messages, "add_generation_prompt": False}).json()["count"] == len("<user>x")
    assert post(live, "/detokenize", {"tokens": [256, 104, 105]}).json() == {"prompt": "<bos>hi"}
    assert post(live, "/detokenize", {"tokens": [258]}).status_code == 400
    for body in ({}, {"prompt": "x", "messages": messages}, {"messages": []}):
        assert post(live, "/tokenize", body).status_code == 400


def test_a_model_without_a_template_refuses_chat():
    async def main() -> None:
        app = create_app(FakeEngine(), FakeTokenizer(), None, ServerConfig())
        async with in_process(app) as client:
            response = await client.post("/v1/chat/completions", json=CHAT)
            assert response.status_code == 400
            assert "no chat template" in error_of(response)["message"]

    asyncio.run(main())


def test_importing_the_server_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, evenflow.serving.server.app, evenflow.serving.server.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent).returncode == 0


def test_long_inputs_do_not_hold_up_the_others():
    """While a long text is tokenised on a thread, the loop answers."""
    import threading

    class Slow(FakeTokenizer):
        def __init__(self) -> None:
            self.may_end = threading.Event()

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            if len(text) > 4096:
                assert self.may_end.wait(10)
            return super().encode(text, add_special_tokens=add_special_tokens)

    async def main() -> None:
        tokenizer = Slow()
        app = create_app(FakeEngine(), tokenizer, FakeTemplate(), ServerConfig())
        async with in_process(app) as client:
            long = asyncio.create_task(client.post("/v1/completions", json={**TEXT, "prompt": "x" * 5000}))
            counted = asyncio.create_task(client.post("/tokenize", json={"prompt": "x" * 5000, "return_token_strs": True}))
            assert (await client.post("/v1/completions", json=TEXT)).status_code == 200
            assert not long.done()
            assert not counted.done()
            tokenizer.may_end.set()
            assert (await long).status_code == 400, "5000 tokens do not fit into 256"
            assert len((await counted).json()["token_strs"]) == 5001
            many = await client.post("/detokenize", json={"tokens": [65] * 5000})
            assert many.json()["prompt"] == "A" * 5000

    asyncio.run(main())
