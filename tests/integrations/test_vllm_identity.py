"""The middleware in front of vLLM: who is asking, whatever they claim."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.access.keys import hash_key
from evenflow.base.errors import ConfigError
from evenflow.integrations.vllm import CLIENT_FIELD
from evenflow.integrations.vllm.identity import ClientIdentity, take_out
from evenflow.integrations.vllm.settings import Settings

CLIENTS = f"""
[admin]
api_keys = ["{hash_key("root")}"]
[clients.alice]
weight = 2
api_keys = ["{hash_key("a-key")}"]
[clients.bob]
api_keys = ["{hash_key("b-key")}"]
"""


class App:
    """What stands behind: remembers what reached it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []

    async def __call__(self, scope, receive, send) -> None:
        body = b""
        if scope["type"] == "http":
            has_more = True
            while has_more:
                message = await receive()
                body += message["body"]
                has_more = message["more_body"]
            length = dict(scope["headers"]).get(b"content-length")
            assert length is None or int(length) == len(body)
        self.seen.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture
def keyed(tmp_path):
    path = tmp_path / "clients.toml"
    path.write_text(CLIENTS)
    app = App()
    return ClientIdentity(app, Settings(clients=path)), app


@pytest.fixture
def open_server():
    app = App()
    return ClientIdentity(app, Settings()), app


def ask(middleware, path, body=None, *, method="POST", key=None, headers=(), kind="http", content_type="application/json"):
    """Status and error of one request; the body arrives in two parts."""
    data = json.dumps(body).encode() if not isinstance(body, bytes) else body
    lines = [(b"content-type", content_type.encode()), (b"content-length", str(len(data)).encode())]
    lines += [(name.encode(), value.encode()) for name, value in headers]
    if key is not None:
        lines.append((b"authorization", f"Bearer {key}".encode()))
    scope = {"type": kind, "method": method, "path": path, "headers": lines}
    parts = [data[: len(data) // 2], data[len(data) // 2 :]]
    messages = [{"type": "http.request", "body": part, "more_body": i == 0} for i, part in enumerate(parts)]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(middleware(scope, receive, send))
    if kind == "websocket":
        return sent
    content = json.loads(sent[1]["body"])
    return sent[0]["status"], content.get("error", {}).get("code")


def client_of(app):
    return json.loads(app.seen[-1][1])["vllm_xargs"][CLIENT_FIELD]


def test_a_key_says_who_the_client_is_and_nothing_else_does(keyed):
    middleware, app = keyed
    claims = {"user": "bob", "vllm_xargs": {CLIENT_FIELD: "bob", "other": 1}}
    headers = [("x-evenflow-client", "bob")]
    assert ask(middleware, "/v1/chat/completions", claims, key="a-key", headers=headers) == (200, None)
    assert client_of(app) == "alice"
    assert json.loads(app.seen[-1][1])["vllm_xargs"]["other"] == 1


@pytest.mark.parametrize("key", [None, "wrong", "a-key "[:0]])
def test_without_a_good_key_nothing_passes(keyed, key):
    middleware, app = keyed
    for path in ("/v1/completions", "/v1/models", "/generate", "/pause"):
        assert ask(middleware, path, {}, key=key) == (401, "invalid_api_key")
    assert not app.seen


@pytest.mark.parametrize("path", ["/health", "/metrics", "/metrics/", "/ping", "/version"])
def test_probes_are_open(keyed, path):
    middleware, app = keyed
    assert ask(middleware, path, {}, method="GET") == (200, None)
    assert app.seen


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/sleep", "/collective_rpc", "/metricsx"])
def test_what_is_not_serving_needs_an_administrator(keyed, path):
    middleware, app = keyed
    assert ask(middleware, path, {"lora_name": "x"}, key="a-key") == (403, "not_allowed")
    assert not app.seen
    assert ask(middleware, path, {"lora_name": "x"}, key="root") == (200, None)


def test_an_open_server_takes_headers_then_user(open_server):
    middleware, app = open_server
    ask(middleware, "/v1/completions", {"user": "carl"}, headers=[("X-EvenFlow-Client", "dora")])
    assert client_of(app) == "dora"
    ask(middleware, "/v1/completions", {"user": "carl"})
    assert client_of(app) == "carl"
    ask(middleware, "/v1/completions", {"vllm_xargs": {CLIENT_FIELD: "forged"}})
    assert client_of(app) == "anonymous"
    assert ask(middleware, "/v1/completions", {}, headers=[("x-evenflow-client", "a\tb")]) == (400, "invalid_client")


def test_header_names_are_settings(tmp_path):
    app = App()
    middleware = ClientIdentity(app, Settings(client_headers=("x-tenant",)))
    ask(middleware, "/v1/completions", {}, headers=[("x-evenflow-client", "no"), ("x-tenant", "yes")])
    assert client_of(app) == "yes"


def test_sampling_params_are_no_way_around(keyed):
    middleware, app = keyed
    body = {"token_ids": [1, 2], "sampling_params": {"extra_args": {CLIENT_FIELD: "bob", "x": 1}}}
    assert ask(middleware, "/inference/v1/generate", body, key="a-key") == (200, None)
    content = json.loads(app.seen[-1][1])
    assert content["sampling_params"]["extra_args"] == {CLIENT_FIELD: "alice", "x": 1}


def test_escapes_do_not_hide_the_field(keyed):
    middleware, app = keyed
    body = b'{"vllm_xargs": {"evenflow\\u005fclient": "bob"}, "vllm_xargs": {"\\u0065venflow_client": "bob"}}'
    assert ask(middleware, "/v1/completions", body, key="a-key") == (200, None)
    assert client_of(app) == "alice"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([CLIENT_FIELD, "vllm_xargs", "a"]), inner, max_size=3)
    ),
    max_leaves=15,
)


@settings(deadline=None)
@given(content=st.dictionaries(st.sampled_from([CLIENT_FIELD, "vllm_xargs", "a"]), JSON))
def test_the_field_is_taken_out_everywhere(content):
    def strings(value):
        if isinstance(value, dict):
            yield from value
            for inner in value.values():
                yield from strings(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from strings(inner)

    take_out(content)
    assert CLIENT_FIELD not in set(strings(content))


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'"text"', b"7"])
def test_what_is_no_object_goes_on_as_it_came(keyed, body):
    middleware, app = keyed
    assert ask(middleware, "/v1/completions", body, key="a-key") == (200, None)
    assert app.seen[-1][1] == body


def test_xargs_that_are_no_object_are_left_for_vllm_to_refuse(keyed):
    middleware, app = keyed
    ask(middleware, "/v1/completions", {"vllm_xargs": [CLIENT_FIELD]}, key="a-key")
    assert json.loads(app.seen[-1][1])["vllm_xargs"] == [CLIENT_FIELD]


def test_forms_and_websockets_cannot_be_told_apart_so_keys_close_them(keyed, open_server):
    middleware, app = keyed
    for content_type in ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        answer = ask(middleware, "/v1/audio/transcriptions", b"x", key="a-key", content_type=content_type)
        assert answer == (400, "invalid_client")
    assert ask(middleware, "/v1/realtime", kind="websocket", key="a-key") == [{"type": "websocket.close", "code": 1008}]
    assert not app.seen
    middleware, app = open_server
    assert ask(middleware, "/v1/audio/transcriptions", b"x", content_type="multipart/form-data; boundary=x") == (200, None)


def test_a_new_file_is_read_and_a_broken_one_is_not(keyed, tmp_path, caplog):
    middleware, _ = keyed
    middleware._clients._every_s = 0.0
    (tmp_path / "clients.toml").write_text(CLIENTS.replace("a-key", "x").replace(hash_key("a-key"), hash_key("new")))
    assert ask(middleware, "/v1/models", {}, key="a-key") == (401, "invalid_api_key")
    assert ask(middleware, "/v1/models", {}, key="new") == (200, None)
    (tmp_path / "clients.toml").write_text("[clients")
    assert ask(middleware, "/v1/models", {}, key="new") == (200, None)
    assert "the clients stay as they were" in caplog.text


def test_a_file_whose_promises_nobody_keeps_is_refused(tmp_path, caplog):
    path = tmp_path / "clients.toml"
    path.write_text('[clients.a]\nadapters = ["a-*"]\n')
    with pytest.raises(ConfigError, match=r"clients\.a\.adapters is not enforced"):
        ClientIdentity(App(), Settings(clients=path))
    path.write_text("[clients.a]\nrequests_per_minute = 5\n")
    ClientIdentity(App(), Settings(clients=path))
    assert "limits of client a have no effect" in caplog.text
