"""clients.toml, read strictly, and what it makes of a caller."""

from __future__ import annotations

import pytest

from evenflow.access.identity import Client, read_directory
from evenflow.access.keys import hash_key, is_hash, new_key
from evenflow.base.errors import ConfigError, InvalidKey, NotAllowed

K1, K2, ROOT = (hash_key(key) for key in ("k1", "k2", "root"))


def read(tmp_path, text: str):
    (tmp_path / "clients.toml").write_text(text)
    return read_directory(tmp_path / "clients.toml")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_keys_are_random_and_only_their_hash_is_kept():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("ef-") and len(key) > 40 for key in keys)
    assert all(is_hash(hash_key(key)) and key not in hash_key(key) for key in keys)
    assert not is_hash("sha256:xyz")


def test_a_full_file(tmp_path):
    directory = read(
        tmp_path,
        f"""
[admin]
api_keys = ["{ROOT}"]
[tiers.gold]
weight = 4
[clients.alice]
tier = "gold"
weight = 0.5
api_keys = ["{K1}", "{K2}"]
requests_per_minute = 10
tokens_per_minute = 1000
max_queued_requests = 5
adapters = ["alice-*", "common"]
[clients.bob]
""",
    )
    alice = directory.holder(bearer("k2"))
    assert alice is not None
    assert (alice.name, alice.weight, alice.requests_per_minute, alice.tokens_per_minute) == ("alice", 2.0, 10, 1000)
    assert alice.max_queued_requests == 5
    assert [alice.may_use(name) for name in ("alice-1", "common", "bob-1", "alice")] == [True, True, False, False]
    assert directory.clients["bob"].may_use("anything")
    assert directory.weight_by_client == {"alice": 0.5}, "her own: the engine's policy knows what to do with the tier's"
    assert (directory.tier_by_client, directory.weight_by_tier) == ({"alice": "gold"}, {"gold": 4.0})
    assert directory.client(alice, {"x-evenflow-client": "bob"}, ("user", "bob")) is alice
    with pytest.raises(NotAllowed, match="'alice'"):
        directory.require_admin(alice)
    admin = directory.holder(bearer("root"))
    directory.require_admin(admin)
    assert directory.client(admin, {}, None).name == "admin"
    for headers in ({}, bearer(""), {"authorization": "k1"}, bearer("k3")):
        with pytest.raises(InvalidKey):
            directory.holder(headers)


def test_no_file_is_open_and_so_is_what_was_opened_explicitly(tmp_path):
    read(tmp_path, "[clients.bob]\nweight = 3\n")
    for directory in (read_directory(None), read_directory(tmp_path / "clients.toml", is_open=True)):
        assert directory.holder({}) is None
        assert directory.holder(bearer("anything")) is None
        directory.require_admin(None)
        assert directory.client(None, {}, None).name == "anonymous"
        assert directory.client(None, {}, ("user", "eve")).name == "eve"
    assert directory.client(None, {"x-evenflow-client": "bob"}, None).weight == 3.0


@pytest.mark.parametrize(
    "text", ["", "[clients.bob]\nweight = 3\n", f'[admin]\napi_keys = ["{ROOT}"]\n', "[clients]\n[tiers]\n"]
)
def test_a_named_file_closes_the_doors_whatever_it_holds(tmp_path, text):
    directory = read(tmp_path, text)
    for headers in ({}, bearer("anything"), {"x-evenflow-client": "bob"}):
        with pytest.raises(InvalidKey):
            directory.holder(headers)
    with pytest.raises(NotAllowed):
        directory.require_admin(None if ROOT not in text else Client("bob"))


def test_an_open_server_with_an_administrator_keeps_its_office(tmp_path):
    read(tmp_path, f'[admin]\napi_keys = ["{ROOT}"]\n')
    directory = read_directory(tmp_path / "clients.toml", is_open=True)
    assert directory.client(directory.holder({}), {}, ("user", "eve")).name == "eve"
    with pytest.raises(InvalidKey, match="administrator"):
        directory.require_admin(directory.holder({}))
    directory.require_admin(directory.holder(bearer("root")))
    assert directory.client(directory.holder(bearer("root")), {"x-evenflow-client": "eve"}, None).name == "eve"


def test_keys_of_the_command_line_are_enough_and_the_operators_own():
    directory = read_directory(None, api_keys=("secret-1", "secret-2"))
    for key in ("secret-1", "secret-2"):
        holder = directory.holder(bearer(key))
        directory.require_admin(holder)
        assert directory.client(holder, {"x-evenflow-client": "eve"}, ("user", "eve")).name == "api-key"
    for headers in ({}, bearer("secret-3")):
        with pytest.raises(InvalidKey):
            directory.holder(headers)


def test_a_gateway_names_the_clients_behind_it_and_nobody_else_does(tmp_path):
    read(
        tmp_path,
        f'[clients.litellm]\ngateway = true\napi_keys = ["{K1}"]\n[clients.alice]\nweight = 3\napi_keys = ["{K2}"]\n',
    )
    headers = ("x-litellm-end-user-id", "x-user-id")
    directory = read_directory(tmp_path / "clients.toml", client_headers=headers)
    gateway, alice = directory.holder(bearer("k1")), directory.holder(bearer("k2"))
    assert directory.client(gateway, {"x-litellm-end-user-id": "alice", "x-user-id": "bob"}, None).weight == 3
    assert directory.client(gateway, {"x-user-id": "bob", "x-evenflow-client": "eve"}, None).name == "bob"
    assert directory.client(gateway, {"x-user-id": "Jürgen".encode().decode("latin-1")}, None).name == "Jürgen"
    assert directory.client(gateway, {}, ("user", "carol")).name == "carol"
    assert directory.client(gateway, {}, None).name == "litellm"
    assert directory.client(alice, {"x-user-id": "bob"}, ("user", "bob")).name == "alice"


def test_client_keys_without_an_admin_key_close_the_office(tmp_path):
    directory = read(tmp_path, f'[clients.alice]\napi_keys = ["{K1}"]\n')
    with pytest.raises(NotAllowed, match="no administrator's key"):
        directory.require_admin(directory.holder(bearer("k1")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[clients.a", "Expected ']'"),
        ("[client.a]\n", "client"),
        ("[clients.a]\nwieght = 1\n", "wieght"),
        ("[clients.a]\nweight = 0\n", ">= 1e-09"),
        ('[clients.a]\nweight = "1"\n', "got str"),
        ("[clients.a]\nrequests_per_minute = 0\n", ">= 1"),
        ("[clients.a]\nmax_queued_requests = 1.5\n", "int"),
        ('[clients.a]\ntier = "gold"\n', "known tiers: none"),
        (f'[clients.a]\napi_keys = ["{K1}"]\n[clients.b]\napi_keys = ["{K1}"]\n', "also a key of a"),
        (f'[admin]\napi_keys = ["{K1}"]\n[clients.b]\napi_keys = ["{K1}"]\n', "also a key of b"),
        ("[clients.admin]\n", "not 'admin'"),
        ('[clients.""]\n', "printable"),
    ],
)
def test_broken_files_are_refused_with_the_reason(tmp_path, text, says):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert "clients.toml" in str(caught.value)
    assert says in str(caught.value)


def test_a_pasted_key_is_refused_and_not_shown(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, '[clients.a]\napi_keys = ["ef-secret"]\n')
    assert "not a hash" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_directory(tmp_path / "nothing.toml")
