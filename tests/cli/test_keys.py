"""Keys are made, listed and revoked without disturbing the rest of clients.toml."""

from __future__ import annotations

import argparse
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from evenflow.access.identity import read_directory
from evenflow.access.keys import hash_key
from evenflow.base.errors import ConfigError
from evenflow.cli import keys

FILE = """\
# who may come in
[tiers.gold]
weight = 4   # four shares

[clients.alice]   # from the third floor
tier = "gold"
requests_per_minute = 60  # she knows
adapters = [
    "alice-*",   # hers
]

[clients."team b"]
weight = 0.5
"""


def cli(*words: str) -> int:
    parser = argparse.ArgumentParser()
    keys.add_parser(parser.add_subparsers(dest="command"))
    args = parser.parse_args(["keys", *words])
    return keys.run(args)


def holder(path, key: str):
    return read_directory(path).holder({"authorization": f"Bearer {key}"})


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "clients.toml"
    file.write_text(FILE)
    return file


def test_a_new_file_is_made_for_its_owner_alone(tmp_path, capsys):
    path = tmp_path / "clients.toml"
    assert cli("new", "alice", "--clients", str(path)) == 0
    key = capsys.readouterr().out.strip()
    assert holder(path, key).name == "alice"
    assert key not in path.read_text()
    assert hash_key(key) in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_rest_of_the_file_stays_as_it_is(path, capsys):
    path.chmod(0o640)
    made = []
    for name in ("alice", "team b", "newcomer", "alice"):
        cli("new", name, "--clients", str(path))
        made.append((name, capsys.readouterr().out.strip()))
    text = path.read_text()
    for line in FILE.splitlines():
        assert line in text.splitlines(), line
    assert [holder(path, key).name for _, key in made] == [name for name, _ in made]
    alice = holder(path, made[0][1])
    assert (alice.weight, alice.requests_per_minute, alice.adapters) == (4.0, 60, ("alice-*",))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in path.parent.iterdir()] == ["clients.toml"], "no draft is left"


def test_admin_keys(path, capsys):
    cli("new", "admin", "--clients", str(path))
    key = capsys.readouterr().out.strip()
    assert holder(path, key).is_admin
    cli("list", "--clients", str(path))
    assert f"admin\t{hash_key(key)[7:19]}" in capsys.readouterr().out.splitlines()


def test_weight_of_a_new_client(path, capsys):
    cli("new", "carol", "--weight", "2.5", "--clients", str(path))
    assert holder(path, capsys.readouterr().out.strip()).weight == 2.5
    with pytest.raises(ConfigError, match="has a client 'carol' already"):
        cli("new", "carol", "--weight", "3", "--clients", str(path))


def test_list_and_revoke(path, capsys):
    cli("new", "alice", "--clients", str(path))
    first = capsys.readouterr().out.strip()
    cli("new", "alice", "--clients", str(path))
    second = capsys.readouterr().out.strip()
    cli("list", "--clients", str(path))
    assert capsys.readouterr().out.splitlines() == [
        f"alice\t{hash_key(first)[7:19]}, {hash_key(second)[7:19]}",
        "team b\tno key",
    ]
    cli("revoke", "alice", "--key", hash_key(first)[7:19], "--clients", str(path))
    assert capsys.readouterr().out == "revoked 1 key of alice\n"
    assert holder(path, second).name == "alice"
    cli("revoke", "alice", "--clients", str(path))
    assert read_directory(path).needs_key, "a file without keys lets nobody in"
    assert not read_directory(path).client_by_hash
    for words in (("alice",), ("nobody",), ("admin",)):
        with pytest.raises(ConfigError, match="has no client"):
            cli("revoke", *words, "--clients", str(path))


def test_a_broken_file_is_not_touched(path):
    path.write_text("[clients.alice\n")
    for words in (("new", "bob"), ("list",), ("revoke", "alice")):
        with pytest.raises(ConfigError, match=r"clients\.toml"):
            cli(*words, "--clients", str(path))
    assert path.read_text() == "[clients.alice\n"


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 300])
def test_what_would_not_load_again_is_not_written(path, name):
    with pytest.raises(ConfigError, match=r"clients\.toml"):
        cli("new", name, "--clients", str(path))
    assert path.read_text() == FILE


def test_places_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        cli("new", "alice", "--clients", str(tmp_path / "nowhere" / "clients.toml"))
    with pytest.raises(ConfigError, match="No such file"):
        cli("list", "--clients", str(tmp_path / "nowhere.toml"))


def test_twelve_at_once_lose_no_key(tmp_path):
    path = tmp_path / "clients.toml"
    path.write_text("# kept\n")
    path.chmod(0o640)
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda i: keys.new_client_key(path, f"c{i % 4}"), range(12)))
    directory = read_directory(path)
    assert {hash_key(key) for key in made} == set(directory.client_by_hash)
    assert "# kept" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_of_another_owner_is_left_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "clients.toml"
    keys.new_client_key(path, "alice")
    before = path.read_bytes()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(ConfigError, match="belongs to user"):
        keys.new_client_key(path, "bob")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["clients.toml"], "no draft is left"
